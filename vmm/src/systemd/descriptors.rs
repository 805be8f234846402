//! The descriptors the process was started with, to be taken by number or by name, each once.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use paddock_api::spec::PassedFd;
use parking_lot::Mutex;
use rustix::fs::FileType;

/// The name under which the service manager passes the API's socket.
pub const API: &str = "api";

/// The name under which it passes `/dev/kvm`.
pub const KVM: &str = "kvm";

/// How the name ends that systemd gives to the sockets of a socket unit without `FileDescriptorName=`: the unit's.
const SOCKET_UNIT: &str = ".socket";

/// A descriptor that was passed to the process.
#[derive(Debug)]
pub struct Passed {
    /// Its number, 3 or more.
    pub number: RawFd,
    /// Whether it is one of those that `LISTEN_FDS` counts.
    pub listed: bool,
    /// Its name in `LISTEN_FDNAMES`.
    pub name: Option<String>,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// Why a passed descriptor cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PassedError {
    /// There is none.
    #[error("{asked}: no descriptor was passed to the process {}", how(.asked, .passed))]
    NotPassed {
        /// Which one was asked for.
        asked: PassedFd,
        /// What there is.
        passed: String,
    },
    /// It has an owner, or had one: what became of a descriptor that somebody took is not known, so it is nobody else's.
    #[error(
        "{asked}: the descriptor was used already, as {user}; each serves one use, also one that failed or is over: start the process \
         anew, and pass it one for each use"
    )]
    Used {
        /// Which one was asked for.
        asked: PassedFd,
        /// What it is used as.
        user: String,
    },
    /// Several are of that name.
    #[error(
        "{asked}: {count} descriptors of this name were passed, and one is wanted; name it by its number, or give each a name of its own"
    )]
    Ambiguous {
        /// Which one was asked for.
        asked: PassedFd,
        /// How many there are.
        count: usize,
    },
}

fn how(asked: &PassedFd, passed: &str) -> String {
    let by = match asked {
        PassedFd::Number(_) => "by this number",
        PassedFd::Name(_) => "by this name in LISTEN_FDNAMES",
    };
    format!("{by}; passed are: {passed}")
}

/// All of them.
#[derive(Debug, Default)]
pub struct Descriptors(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    number: RawFd,
    listed: bool,
    name: Option<String>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Free(OwnedFd),
    /// As what it was taken.
    Taken(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({})", self.number, name.escape_debug()),
            None => write!(f, "{}", self.number),
        }
    }
}

impl Entry {
    fn is(&self, asked: &PassedFd) -> bool {
        match asked {
            PassedFd::Number(number) => self.number == *number,
            PassedFd::Name(name) => self.name.as_ref() == Some(name),
        }
    }

    /// The descriptor, if it is still there.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.place {
            Place::Free(fd) => Some(fd.as_fd()),
            Place::Taken(_) => None,
        }
    }

    fn take(&mut self, asked: &PassedFd, user: &str) -> Result<OwnedFd, PassedError> {
        match std::mem::replace(&mut self.place, Place::Taken(user.to_owned())) {
            Place::Free(fd) => Ok(fd),
            Place::Taken(by) => {
                let error = PassedError::Used {
                    asked: asked.clone(),
                    user: by.clone(),
                };
                self.place = Place::Taken(by);
                Err(error)
            }
        }
    }
}

impl Descriptors {
    /// All that was passed.
    #[must_use]
    pub fn new(passed: impl IntoIterator<Item = Passed>) -> Self {
        let entries = passed.into_iter().map(|passed| Entry {
            number: passed.number,
            listed: passed.listed,
            name: passed.name,
            place: Place::Free(passed.fd),
        });
        let mut entries: Vec<_> = entries.collect();
        entries.sort_by_key(|entry| entry.number);
        Self(Mutex::new(entries))
    }

    /// Takes a descriptor: it is the caller's from now on. `user` is what it will be used as, for people.
    ///
    /// # Errors
    /// When there is none, or several, or it was taken before.
    pub fn take(&self, asked: &PassedFd, user: &str) -> Result<OwnedFd, PassedError> {
        let mut entries = self.0.lock();
        let matching = entries.iter().filter(|entry| entry.is(asked));
        let count = matching.count();
        if count > 1 {
            let asked = asked.clone();
            return Err(PassedError::Ambiguous { asked, count });
        }
        match entries.iter_mut().find(|entry| entry.is(asked)) {
            Some(entry) => entry.take(asked, user),
            None => Err(not_passed(asked, &entries)),
        }
    }

    /// Whether there is such a descriptor, taken or not.
    #[must_use]
    pub fn has(&self, asked: &PassedFd) -> bool {
        self.0.lock().iter().any(|entry| entry.is(asked))
    }

    /// What the service manager passed as the API's socket: what it calls `api`, or else the only socket that has no other purpose. That
    /// is one without a name of its own, none or its socket unit's, which is systemd's default, and not in `spoken_for`.
    #[must_use]
    pub fn api_socket(&self, spoken_for: &[PassedFd]) -> Option<PassedFd> {
        let entries = self.0.lock();
        let free = |entry: &&Entry| {
            let spoken_for = spoken_for.iter().any(|asked| entry.is(asked));
            entry.listed && entry.fd().is_some() && !spoken_for
        };
        let mut free = entries.iter().filter(free);
        let api = PassedFd::Name(API.to_owned());
        if free.clone().any(|entry| entry.is(&api)) {
            return Some(api);
        }
        let mut sockets = free.by_ref().filter(|entry| {
            let named = entry.name.as_deref();
            named.is_none_or(|name| name.ends_with(SOCKET_UNIT)) && is_socket(entry)
        });
        match (sockets.next(), sockets.next()) {
            (Some(only), None) => Some(PassedFd::Number(only.number)),
            _ => None,
        }
    }
}

fn is_socket(entry: &Entry) -> bool {
    let stat = entry.fd().map(rustix::fs::fstat);
    matches!(stat, Some(Ok(stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

fn not_passed(asked: &PassedFd, entries: &[Entry]) -> PassedError {
    let passed: Vec<_> = entries.iter().take(16).map(Entry::to_string).collect();
    let passed = match passed.join(", ") {
        none if none.is_empty() => "none".to_owned(),
        list if entries.len() > 16 => format!("{list}, …"),
        list => list,
    };
    PassedError::NotPassed {
        asked: asked.clone(),
        passed,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn file() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn socket() -> OwnedFd {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        UnixListener::bind(path).unwrap().into()
    }

    fn passed(number: RawFd, name: Option<&str>, fd: OwnedFd) -> Passed {
        Passed {
            number,
            listed: true,
            name: name.map(str::to_owned),
            fd,
        }
    }

    fn asked(text: &str) -> PassedFd {
        text.parse().unwrap()
    }

    #[test]
    fn each_is_used_once() {
        let descriptors = Descriptors::new([
            passed(4, Some("root"), file()),
            passed(3, None, file()),
            passed(5, Some("root disk"), file()),
        ]);
        let take = |text: &str, user: &str| descriptors.take(&asked(text), user).map(drop);
        assert_eq!(take("fd:4", "/disks/0/path"), Ok(()));
        let error = take("fd:root", "/disks/1/path").unwrap_err().to_string();
        assert_eq!(
            error,
            "fd:root: the descriptor was used already, as /disks/0/path; each serves one use, also one that failed or is over: \
             start the process anew, and pass it one for each use"
        );
        let error = take("fd:6", "/disks/1/path").unwrap_err().to_string();
        assert_eq!(
            error,
            "fd:6: no descriptor was passed to the process by this number; passed are: 3, 4 (root), 5 (root disk)"
        );
        let error = take("fd:data", "/disks/1/path").unwrap_err().to_string();
        assert!(error.contains("by this name in LISTEN_FDNAMES"), "{error}");
        assert_eq!(take("fd:3", "a"), Ok(()));
        let nothing = Descriptors::default().take(&asked("fd:3"), "a");
        assert!(nothing.unwrap_err().to_string().ends_with("are: none"));
    }

    #[test]
    fn two_of_a_name() {
        let descriptors =
            Descriptors::new([passed(3, Some("x"), file()), passed(4, Some("x"), file())]);
        let error = descriptors.take(&asked("fd:x"), "a").unwrap_err();
        assert!(
            matches!(error, PassedError::Ambiguous { count: 2, .. }),
            "{error}"
        );
        descriptors.take(&asked("fd:3"), "a").unwrap();
    }

    #[test]
    fn which_socket_is_the_apis() {
        let api = |passed: Vec<Passed>| Descriptors::new(passed).api_socket(&[]);
        assert_eq!(api(vec![]), None);
        assert_eq!(api(vec![passed(3, Some("kvm"), file())]), None);
        for nameless in [None, Some("paddock@web.socket")] {
            let only = vec![
                passed(3, Some("kvm"), file()),
                passed(4, nameless, socket()),
            ];
            assert_eq!(api(only), Some(asked("fd:4")));
        }
        let named = vec![
            passed(3, Some("other"), socket()),
            passed(4, Some("api"), socket()),
        ];
        assert_eq!(api(named), Some(asked("fd:api")));
        assert_eq!(
            api(vec![passed(3, None, socket()), passed(4, None, socket())]),
            None
        );
        // What a shell left open is not meant.
        let stray = Passed {
            listed: false,
            ..passed(3, None, socket())
        };
        assert_eq!(api(vec![stray]), None);
        let descriptors = Descriptors::new([passed(3, None, socket())]);
        descriptors.take(&asked("fd:3"), "a").unwrap();
        assert_eq!(descriptors.api_socket(&[]), None);
    }

    #[test]
    fn a_consoles_socket_is_not_the_apis() {
        // One that was given a name was given a purpose.
        let named = Descriptors::new([passed(3, Some("serial"), socket())]);
        assert_eq!(named.api_socket(&[]), None);
        // One that was not is what the spec says it is, by whichever of its names.
        let two = || {
            Descriptors::new([
                passed(3, None, socket()),
                passed(4, Some("web.socket"), socket()),
            ])
        };
        assert_eq!(two().api_socket(&[]), None);
        assert_eq!(two().api_socket(&[asked("fd:3")]), Some(asked("fd:4")));
        let number = asked("fd:3");
        assert_eq!(two().api_socket(&[asked("fd:web.socket")]), Some(number));
        let both = [asked("fd:3"), asked("fd:4")];
        assert_eq!(two().api_socket(&both), None);
        let api = Descriptors::new([passed(3, Some("api"), socket())]);
        assert_eq!(api.api_socket(&[asked("fd:api")]), None);
    }
}
