//! RAM disks of the kernel's, for guests: its module is loaded with the first of them and goes with the last.
//!
//! They answer within the call that asks them, on the thread that does, so that what is measured is the VMM's and the guest's doing, and
//! no thread of the host's competes with theirs.

use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// Bytes of each.
const SIZE: u64 = 256 << 20;
/// How many there are. They take memory once they are written.
const COUNT: usize = 8;
/// There while the module is.
const LOADED: &str = "/sys/module/brd";
/// How long a process that has ended may still have a disk open: the kernel closes the files of its rings a little later.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// One, while this lives.
pub(super) struct RamDisk {
    pub(super) path: PathBuf,
    number: usize,
    module: Arc<Module>,
}

impl RamDisk {
    /// Takes one, full of data: what was never written costs nothing to read.
    ///
    /// # Errors
    /// When all are taken, when the kernel gives none, or when somebody else has loaded the module.
    pub(super) fn new() -> io::Result<Self> {
        let module = Module::get()?;
        let number = module
            .taken
            .iter()
            .position(|taken| !taken.swap(true, Ordering::Relaxed))
            .ok_or_else(|| io::Error::other(format!("all {COUNT} of them are taken")))?;
        let this = Self {
            path: format!("/dev/ram{number}").into(),
            number,
            module,
        };
        this.fill()?;
        Ok(this)
    }

    fn fill(&self) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            // Not one that somebody has mounted.
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(&self.path)?;
        if file.seek(SeekFrom::End(0))? < SIZE {
            return Err(io::Error::other("it is too small"));
        }
        file.rewind()?;
        for _ in 0..SIZE >> 16 {
            file.write_all(&[0xa5; 1 << 16])?;
        }
        file.sync_all()
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        self.module.taken[self.number].store(false, Ordering::Relaxed);
    }
}

/// The kernel's module, while it is loaded, and which of its disks are taken.
struct Module {
    taken: [AtomicBool; COUNT],
}

/// The one there is.
static MODULE: Mutex<Weak<Module>> = Mutex::new(Weak::new());

impl Module {
    fn get() -> io::Result<Arc<Self>> {
        let mut present = MODULE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = present.upgrade() {
            return Ok(module);
        }
        if Path::new(LOADED).exists() {
            return Err(io::Error::other(
                "there are RAM disks, which may be in use: unload the module brd first",
            ));
        }
        let size = format!("rd_size={}", SIZE >> 10);
        call("modprobe", &["brd", &format!("rd_nr={COUNT}"), &size])?;
        let module = Arc::new(Self {
            taken: [const { AtomicBool::new(false) }; COUNT],
        });
        *present = Arc::downgrade(&module);
        Ok(module)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let end = Instant::now() + CLOSE_DEADLINE;
        while let Err(error) = call("rmmod", &["brd"]) {
            if Instant::now() >= end {
                eprintln!("the RAM disks stay, with their memory: {error}");
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

fn call(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim_end())))
}
