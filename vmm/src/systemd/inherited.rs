//! What the process is started with: the variables of `sd_notify(3)` and `sd_listen_fds(3)`, and open descriptors.
//!
//! [`adopt`] runs once, on the only thread there is, before the process opens anything: so what is open is known to be passed, and not a
//! descriptor of ours. From then on the variables are gone and the descriptors are closed in whatever the process might start.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::descriptors::{Descriptors, Passed};

/// The variables that are taken.
const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];
/// The first descriptor that can be passed: those below are the standard ones.
pub const FIRST: RawFd = 3;
/// Descriptors that systemd can list in `LISTEN_FDS`, at most; a larger number is no list.
const MAX_LISTED: RawFd = 1 << 16;

static INHERITED: OnceLock<Inherited> = OnceLock::new();

/// What the process is started with.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The service manager that wants to be told, if there is one.
    pub notify: Option<Notify>,
    /// The descriptors.
    pub descriptors: Descriptors,
    /// Variables that say nothing that makes sense, to be logged.
    pub remarks: Vec<String>,
}

/// Who wants to be told how the process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// `NOTIFY_SOCKET`.
    pub socket: OsString,
    /// How long it waits for a sign of life, if it waits for any.
    pub watchdog: Option<Duration>,
}

/// Takes all of it. To be called first in the program.
///
/// # Safety
/// No other thread runs, and the process has opened no descriptor yet.
#[expect(
    unsafe_code,
    reason = "the environment is changed, and descriptors come as numbers"
)]
pub unsafe fn adopt() {
    let taken = VARIABLES.map(|name| (name, std::env::var_os(name)));
    for (name, value) in &taken {
        if value.is_some() {
            // SAFETY: no other thread can read the environment, says the caller.
            unsafe { std::env::remove_var(name) };
        }
    }
    let variables = Variables(BTreeMap::from(taken));
    let mut inherited = Inherited::default();
    inherited.notify = variables.notify(&mut inherited.remarks);
    let names = variables.listed(&mut inherited.remarks);
    let numbers = open_numbers(names.len());
    let passed = numbers.into_iter().filter_map(|number| {
        // SAFETY: fcntl touches no memory; the descriptor may be closed, and that is told.
        let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        let listed = usize::try_from(number - FIRST).ok();
        let listed = listed.and_then(|index| names.get(index));
        open.then(|| Passed {
            number,
            listed: listed.is_some(),
            name: listed.cloned().flatten(),
            // SAFETY: it is open, and nobody else in this process can own it, says the caller.
            fd: unsafe { OwnedFd::from_raw_fd(number) },
        })
    });
    inherited.descriptors = Descriptors::new(passed);
    // The first call decides; there is but one.
    let _ = INHERITED.set(inherited);
}

/// What was taken; nothing where [`adopt`] did not run, as in tests.
pub fn inherited() -> &'static Inherited {
    INHERITED.get_or_init(Inherited::default)
}

/// The numbers of what may be open, without the standard descriptors. Some may be closed.
fn open_numbers(listed: usize) -> Vec<RawFd> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|number| *number >= FIRST)
            .collect(),
        // Without /proc, only what is said to be there.
        Err(_) => (FIRST..)
            .take(listed)
            .take_while(|number| *number < MAX_LISTED)
            .collect(),
    }
}

/// The variables, as they were.
#[derive(Debug, Default)]
struct Variables(BTreeMap<&'static str, Option<OsString>>);

impl Variables {
    fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name)?.as_deref()
    }

    /// A number, or a remark.
    fn number(&self, name: &str, remarks: &mut Vec<String>) -> Option<u64> {
        let text = self.get(name)?;
        let number = text.to_str().and_then(|text| text.parse().ok());
        if number.is_none() {
            remarks.push(format!("{name} is {text:?}, which is no number"));
        }
        number
    }

    /// Whether a variable with a process id, where it is there, means this process: others inherit variables, too.
    fn is_for_us(&self, name: &str, remarks: &mut Vec<String>) -> bool {
        self.get(name).is_none()
            || self.number(name, remarks) == Some(u64::from(std::process::id()))
    }

    fn notify(&self, remarks: &mut Vec<String>) -> Option<Notify> {
        let socket = self.get("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let watchdog = self
            .number("WATCHDOG_USEC", remarks)
            .filter(|microseconds| *microseconds > 0)
            .filter(|_| self.is_for_us("WATCHDOG_PID", remarks));
        Some(Notify {
            socket: socket.to_owned(),
            watchdog: watchdog.map(Duration::from_micros),
        })
    }

    /// The names of what `LISTEN_FDS` lists, from descriptor 3 on; `None` for one that has no name.
    fn listed(&self, remarks: &mut Vec<String>) -> Vec<Option<String>> {
        if self.get("LISTEN_PID").is_none() || !self.is_for_us("LISTEN_PID", remarks) {
            return Vec::new();
        }
        let count = self.number("LISTEN_FDS", remarks).unwrap_or(0);
        let most = u64::try_from(MAX_LISTED).unwrap_or_default();
        let Some(count) = usize::try_from(count)
            .ok()
            .filter(|_| (1..=most).contains(&count))
        else {
            if count > most {
                remarks.push(format!("LISTEN_FDS is {count}, more than {most}"));
            }
            return Vec::new();
        };
        let names = self.get("LISTEN_FDNAMES").and_then(OsStr::to_str);
        let names: Vec<_> = names.map_or_else(Vec::new, |names| {
            names
                .split(':')
                .map(|name| Some(name.to_owned()).filter(|name| !name.is_empty()))
                .collect()
        });
        if names.len() == count {
            return names;
        }
        if !names.is_empty() {
            remarks.push(format!(
                "LISTEN_FDNAMES has {} names for {count} descriptors: they are not used",
                names.len()
            ));
        }
        vec![None; count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(values: &[(&'static str, &str)]) -> Variables {
        let values = values.iter();
        Variables(
            values
                .map(|(name, value)| (*name, Some(value.into())))
                .collect(),
        )
    }

    fn notify(values: &[(&'static str, &str)]) -> (Option<Notify>, Vec<String>) {
        let mut remarks = Vec::new();
        let notify = variables(values).notify(&mut remarks);
        (notify, remarks)
    }

    fn listed(values: &[(&'static str, &str)]) -> (Vec<Option<String>>, Vec<String>) {
        let mut remarks = Vec::new();
        let listed = variables(values).listed(&mut remarks);
        (listed, remarks)
    }

    fn own() -> String {
        std::process::id().to_string()
    }

    #[test]
    fn who_wants_to_be_told() {
        assert_eq!(notify(&[]), (None, vec![]));
        assert_eq!(notify(&[("NOTIFY_SOCKET", "")]), (None, vec![]));
        assert_eq!(notify(&[("WATCHDOG_USEC", "5")]), (None, vec![]));
        let socket = ("NOTIFY_SOCKET", "/run/notify");
        let with = |watchdog| {
            let socket = "/run/notify".into();
            Some(Notify { socket, watchdog })
        };
        let usec = ("WATCHDOG_USEC", "2000000");
        let two_seconds = Some(Duration::from_secs(2));
        let (own, foreign) = (own(), "1".to_owned());
        assert_eq!(notify(&[socket]), (with(None), vec![]));
        assert_eq!(notify(&[socket, usec]), (with(two_seconds), vec![]));
        let ours = [socket, usec, ("WATCHDOG_PID", own.as_str())];
        assert_eq!(notify(&ours), (with(two_seconds), vec![]));
        let others = [socket, usec, ("WATCHDOG_PID", foreign.as_str())];
        assert_eq!(notify(&others), (with(None), vec![]));
        let (nonsense, remarks) = notify(&[socket, ("WATCHDOG_USEC", "soon")]);
        assert_eq!(nonsense, with(None));
        assert_eq!(remarks, ["WATCHDOG_USEC is \"soon\", which is no number"]);
    }

    #[test]
    fn what_is_listed() {
        let own = own();
        let pid = ("LISTEN_PID", own.as_str());
        let two = ("LISTEN_FDS", "2");
        let nobody = (vec![None, None], vec![]);
        assert_eq!(listed(&[two]), (vec![], vec![]), "no LISTEN_PID");
        assert_eq!(listed(&[two, ("LISTEN_PID", "1")]), (vec![], vec![]));
        assert_eq!(listed(&[pid]), (vec![], vec![]));
        assert_eq!(listed(&[pid, ("LISTEN_FDS", "0")]), (vec![], vec![]));
        assert_eq!(listed(&[pid, two]), nobody);
        let names = ("LISTEN_FDNAMES", "api:");
        let api = vec![Some("api".to_owned()), None];
        assert_eq!(listed(&[pid, two, names]), (api, vec![]));
    }

    #[test]
    fn lists_that_make_no_sense() {
        let own = own();
        let pid = ("LISTEN_PID", own.as_str());
        for count in ["many", "-1", "65537", "18446744073709551615"] {
            let (names, remarks) = listed(&[pid, ("LISTEN_FDS", count)]);
            assert_eq!((names.len(), remarks.len()), (0, 1), "{count}: {remarks:?}");
        }
        let three = ("LISTEN_FDNAMES", "a:b:c");
        let (names, remarks) = listed(&[pid, ("LISTEN_FDS", "2"), three]);
        assert_eq!(names, [None, None]);
        assert!(remarks[0].contains("3 names for 2"), "{remarks:?}");
        let (names, remarks) = listed(&[("LISTEN_PID", "me"), ("LISTEN_FDS", "2")]);
        assert_eq!((names.len(), remarks.len()), (0, 1));
    }
}
