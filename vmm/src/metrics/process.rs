//! What the process costs the host: time, memory, threads, descriptors.
//!
//! All of it comes from `/proc/self`, which may take a while: for memory, the kernel walks the page tables, those of the guest's
//! memory included. So it is read on a blocking thread, one reader at a time; the walk at most every [`WALK_EVERY`], and less often the
//! longer it takes. Nobody waits for it longer than [`PATIENCE`]; then what was read last has to do.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

/// How often the page tables are walked at most. Beside that, never for more than a hundredth of the time.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// How long a reader waits for new numbers.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the kernel's tick is for `/proc`: USER_HZ is 100 on every x86 kernel.
const TICK: Duration = Duration::from_millis(10);

/// What the process costs at one moment. `None` where the host does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// CPU time in user and in kernel mode, vCPUs included.
    pub cpu: Option<(Duration, Duration)>,
    /// Bytes of memory that are mapped and there, guest memory included.
    pub resident: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// How many it may have.
    pub max_fds: Option<u64>,
    /// Its share of the host's memory.
    pub share: Option<Share>,
}

/// Bytes of memory, pages shared with other processes in proportion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Guest memory.
    pub guest: u64,
    /// All else: what the VMM costs.
    pub overhead: u64,
}

/// Reads what the process costs. A cheap handle.
#[derive(Debug, Clone)]
pub struct Sampler {
    walk: Arc<tokio::sync::Mutex<Walk>>,
    latest: Arc<Mutex<Option<Sample>>>,
    patience: Duration,
}

impl Default for Sampler {
    fn default() -> Self {
        Self {
            walk: Arc::default(),
            latest: Arc::default(),
            patience: PATIENCE,
        }
    }
}

/// The last walk.
#[derive(Debug, Default)]
struct Walk {
    /// Guest memory as it was then.
    ram: Vec<Range<u64>>,
    result: Option<Share>,
    /// Not again before then.
    next: Option<Instant>,
}

impl Sampler {
    /// What the process costs now. `ram` is where the guest's memory lies.
    pub async fn sample(&self, ram: Vec<Range<u64>>) -> Option<Sample> {
        let fresh = async {
            // Goes along, so that a reader who gives up does not let another one in beside what still runs.
            let mut walk = Arc::clone(&self.walk).lock_owned().await;
            let latest = Arc::clone(&self.latest);
            let reading = tokio::task::spawn_blocking(move || {
                let sample = read(&mut walk, ram);
                *latest.lock() = Some(sample);
                sample
            });
            reading.await.ok()
        };
        match tokio::time::timeout(self.patience, fresh).await {
            Ok(Some(sample)) => Some(sample),
            _ => *self.latest.lock(),
        }
    }
}

fn read(walk: &mut Walk, ram: Vec<Range<u64>>) -> Sample {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Sample {
        cpu: fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|stat| cpu_times(&stat)),
        resident: field(&status, "VmRSS:").map(|kib| kib * 1024),
        threads: field(&status, "Threads:"),
        // Without the one that this takes.
        open_fds: fs::read_dir("/proc/self/fd")
            .ok()
            .map(|fds| (fds.count() as u64).saturating_sub(1)),
        max_fds: getrlimit(Resource::Nofile).current,
        share: walk.share(ram),
    }
}

impl Walk {
    fn share(&mut self, ram: Vec<Range<u64>>) -> Option<Share> {
        let start = Instant::now();
        let is_old = self.next.is_none_or(|next| start >= next);
        if is_old || self.ram != ram {
            let file = File::open("/proc/self/smaps");
            self.result = file
                .and_then(|file| shares(BufReader::new(file), &ram))
                .ok();
            self.ram = ram;
            self.next = Some(start + WALK_EVERY.max(start.elapsed() * 100));
        }
        self.result
    }
}

/// User and system time in `/proc/self/stat`.
fn cpu_times(stat: &str) -> Option<(Duration, Duration)> {
    // The name comes second, in parentheses, and may be anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || {
        let ticks: u32 = fields.next()?.parse().ok()?;
        Some(TICK * ticks)
    };
    Some((next()?, next()?))
}

/// A number in a file of lines with names.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Adds up `/proc/self/smaps`. A mapping that touches the guest's memory is the guest's: its memory has neighbours of its own kind only.
fn shares(mut smaps: impl BufRead, ram: &[Range<u64>]) -> io::Result<Share> {
    let mut share = Share::default();
    let mut is_guest = false;
    let mut line = String::new();
    while smaps.read_line(&mut line)? > 0 {
        if let Some(mapping) = mapping(&line) {
            let touches = |ram: &Range<u64>| ram.start < mapping.end && mapping.start < ram.end;
            is_guest = ram.iter().any(touches);
        } else if let Some(kib) = field(&line, "Pss:") {
            let sum = if is_guest {
                &mut share.guest
            } else {
                &mut share.overhead
            };
            *sum += kib * 1024;
        }
        line.clear();
    }
    Ok(share)
}

/// The addresses of a mapping, if its first line is this one.
fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
555555554000-555555560000 r-xp 00000000 fe:00 1 /usr/bin/paddock
Rss:                 100 kB
Pss:                  40 kB
Pss_Dirty:             1 kB
VmFlags: rd ex
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Rss:                3000 kB
Pss:                3000 kB
Pss_Anon:           3000 kB
7f0008000000-7f0008001000 rw-p 00000000 00:00 0
Pss:                   4 kB
7f0100000000-7f0108000000 rw-s 00000000 00:01 2 /memfd:paddock-ram (deleted)
Pss:                 500 kB
";

    #[test]
    fn what_is_the_guests_is_told_apart() {
        let ram = [
            0x7f00_0000_0000..0x7f00_0800_0000,
            0x7f01_0000_0000..0x7f01_0800_0000,
        ];
        let share = |ram| shares(SMAPS.as_bytes(), ram).unwrap();
        let both = Share {
            guest: 3500 << 10,
            overhead: 44 << 10,
        };
        assert_eq!(share(&ram), both);
        assert_eq!(share(&[]).guest, 0);
    }

    #[test]
    fn the_name_of_the_process_does_not_matter() {
        let rest = "S 1 1 1 0 -1 4194304 100 0 0 0 250 75 0 0 20 0 1 0 1 1";
        let expected = (Duration::from_millis(2500), Duration::from_millis(750));
        for name in ["paddock", "a) S 9 (b", ""] {
            let stat = format!("7 ({name}) {rest}");
            assert_eq!(cpu_times(&stat), Some(expected), "{stat}");
        }
        assert_eq!(cpu_times("7 (paddock) S 1"), None);
        assert_eq!(cpu_times(""), None);
    }

    #[test]
    fn this_process_costs_something() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let sampler = Sampler::default();
        let mut held = vec![1_u8; 8 << 20];
        held.fill(2);
        let sample = |ram| runtime.block_on(sampler.sample(ram)).unwrap();
        let first = sample(Vec::new());
        assert!(first.resident.unwrap() > 8 << 20);
        assert!(first.threads.unwrap() >= 2 && first.open_fds.unwrap() >= 3);
        assert!(first.max_fds.unwrap() >= first.open_fds.unwrap());
        let share = first.share.unwrap();
        assert!(share.guest == 0 && share.overhead > 8 << 20, "{share:?}");
        let busy = Instant::now();
        while busy.elapsed() < Duration::from_millis(50) {}
        let second = sample(Vec::new());
        let total = |sample: &Sample| sample.cpu.map(|(user, system)| user + system);
        assert!(total(&second) > total(&first));
        assert_eq!(
            second.share, first.share,
            "the walk is not done again so soon"
        );
        // But for other memory it is.
        let start = held.as_ptr().addr() as u64;
        let ram = start..start + held.len() as u64;
        let guest = sample(vec![ram]).share.unwrap();
        assert!(guest.guest >= 8 << 20, "{guest:?}");
    }

    #[test]
    fn who_gives_up_waiting_gets_what_was_read_last() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let mut sampler = Sampler::default();
        runtime.block_on(async {
            let first = sampler.sample(Vec::new()).await;
            assert!(first.is_some());
            sampler.patience = Duration::from_millis(10);
            let walk = Arc::clone(&sampler.walk);
            let _busy = walk.lock().await;
            assert_eq!(sampler.sample(Vec::new()).await, first);
        });
    }
}
