//! A thread in namespaces of its own, and the host's tools run in them.
#![expect(
    unsafe_code,
    reason = "namespaces, mounts and credentials of one thread"
)]

use std::ffi::CString;
use std::io;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Runs `test` in a fresh network namespace, and no other test meanwhile: between fork and exec, another's child would have
/// this test's taps open.
pub fn alone(test: impl FnOnce() + Send + 'static) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let thread = std::thread::spawn(|| {
        // SAFETY: gives this thread, which is about to end, a network namespace; touches no memory.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Hides a directory from this thread, below an empty file system.
pub fn hide(directory: &str) {
    let (root, path, kind) = (c("/"), c(directory), c("tmpfs"));
    let private = libc::MS_REC | libc::MS_PRIVATE;
    let null = std::ptr::null();
    // SAFETY: gives this thread a mount namespace; touches no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) });
    // SAFETY: all strings end in a zero byte and outlive the call.
    check(unsafe { libc::mount(null, root.as_ptr(), null, private, null.cast()) });
    // SAFETY: all strings end in a zero byte and outlive the call.
    check(unsafe { libc::mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, null.cast()) });
}

/// Takes this thread, and no other, the rights of root for good.
pub fn become_user(id: u32) {
    let id = libc::c_ulong::from(id);
    // SAFETY: the raw call changes this thread only, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn check(result: libc::c_int) {
    assert_eq!(result, 0, "{}; run as root", io::Error::last_os_error());
}

/// Runs a command line, which must succeed, and returns what it prints.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{line}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether an interface is there.
pub fn exists(name: &str) -> bool {
    let output = Command::new("ip")
        .args(["link", "show", "dev", name])
        .output();
    output.unwrap().status.success()
}

/// What `ip` knows of an interface.
pub fn link(name: &str) -> serde_json::Value {
    let all: serde_json::Value =
        serde_json::from_str(&run(&format!("ip -j -d link show dev {name}"))).unwrap();
    all[0].clone()
}

/// A port's VLANs, as (id, flags).
pub fn vlans(port: &str) -> Vec<(u64, Vec<String>)> {
    let all: serde_json::Value =
        serde_json::from_str(&run(&format!("bridge -j vlan show dev {port}"))).unwrap();
    let Some(list) = all[0]["vlans"].as_array() else {
        return Vec::new();
    };
    let flags = |vlan: &serde_json::Value| {
        let flags = vlan["flags"].as_array().cloned().unwrap_or_default();
        flags
            .iter()
            .map(|flag| flag.as_str().unwrap().to_owned())
            .collect()
    };
    list.iter()
        .map(|vlan| (vlan["vlan"].as_u64().unwrap(), flags(vlan)))
        .collect()
}
