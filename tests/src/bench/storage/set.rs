//! What figures of storage compete on: sets of replicas, and a file. Those that a figure leaves as they were serve the next one too.

use std::fs::File;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tempfile::TempDir;

use super::load::Subject;
use crate::bench::BenchError;
use crate::longhorn::{
    Engine, EngineOptions, Replica, ReplicaOptions, directory, own_replica, program, volume_name,
};
use crate::threads::process_cpu_time;

/// Bytes of a volume, and of the file.
pub(super) const SIZE: u64 = 256 << 20;
/// So many replicas, as Longhorn has by default.
pub(super) const REPLICAS: usize = 3;

/// Whose replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Longhorn's.
    Longhorn,
    /// Ours: `paddock-replica`.
    Paddock,
}

impl Kind {
    fn program(self) -> PathBuf {
        match self {
            Self::Longhorn => program(),
            Self::Paddock => own_replica(),
        }
    }
}

/// A volume's replicas, which nobody has open.
#[derive(Debug)]
pub(super) struct Set {
    volume: String,
    options: ReplicaOptions,
    pub(super) replicas: Vec<Replica>,
    /// Last: the replicas end before it goes.
    directory: TempDir,
}

impl Set {
    /// Starts so many.
    pub(super) fn start(kind: Kind, count: usize) -> Self {
        let volume = volume_name("bench");
        let mut set = Self {
            options: ReplicaOptions {
                program: kind.program(),
                ..ReplicaOptions::of(&volume)
            },
            volume,
            replicas: Vec::new(),
            directory: directory(),
        };
        for _ in 0..count {
            let replica = set.another();
            set.replicas.push(replica);
        }
        set
    }

    /// One more replica, empty, which is not of the set.
    pub(super) fn another(&self) -> Replica {
        // Longhorn wants the directory's name to be its own.
        let name = volume_name("r");
        let path = self.directory.path().join(name);
        Replica::start(&path, SIZE, self.options.clone())
    }

    /// For `disk-load`, by Paddock's engine.
    pub(super) fn subject(&self) -> Subject {
        let replicas = self.replicas.iter().map(|one| one.control().to_string());
        let replicas = replicas.collect::<Vec<_>>().join(",");
        Subject::Volume(format!("{}={replicas}", self.volume))
    }

    /// Longhorn's engine on them.
    pub(super) fn engine(&self) -> Engine {
        let replicas: Vec<_> = self.replicas.iter().collect();
        Engine::start(&self.volume, SIZE, &replicas, &EngineOptions::default())
    }

    /// CPU time of its processes so far.
    pub(super) fn cpu_time(&self) -> Result<Duration, BenchError> {
        let pids = self.replicas.iter().map(Replica::pid);
        pids.map(cpu_time).sum()
    }
}

/// CPU time of a process so far.
pub(super) fn cpu_time(pid: u32) -> Result<Duration, BenchError> {
    process_cpu_time(pid).map_err(|source| BenchError::Host {
        what: "reading a process's CPU time".to_owned(),
        source,
    })
}

/// A file full of data, while this lives.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) path: PathBuf,
    _directory: TempDir,
}

impl DataFile {
    fn new() -> Result<Self, BenchError> {
        // On the file system of target/, which takes O_DIRECT.
        let directory = directory();
        let path = directory.path().join("disk.raw");
        let made = File::create(&path).and_then(|file| file.set_len(SIZE));
        made.map_err(|source| BenchError::Host {
            what: format!("making {}", path.display()),
            source,
        })?;
        Subject::File(path.clone()).fill()?;
        Ok(Self {
            path,
            _directory: directory,
        })
    }
}

/// What is there so far.
#[derive(Debug, Default)]
pub(in crate::bench) struct Yard {
    sets: Vec<(Kind, Rc<Set>)>,
    file: Option<Rc<DataFile>>,
}

impl Yard {
    /// Replicas that are full of data, and stay so.
    pub(super) fn set(&mut self, kind: Kind) -> Result<Rc<Set>, BenchError> {
        if let Some((_, set)) = self.sets.iter().find(|(of, _)| *of == kind) {
            return Ok(Rc::clone(set));
        }
        let set = Rc::new(Set::start(kind, REPLICAS));
        set.subject().fill()?;
        self.sets.push((kind, Rc::clone(&set)));
        Ok(set)
    }

    /// The file.
    pub(super) fn file(&mut self) -> Result<Rc<DataFile>, BenchError> {
        if let Some(file) = &self.file {
            return Ok(Rc::clone(file));
        }
        let file = Rc::new(DataFile::new()?);
        self.file = Some(Rc::clone(&file));
        Ok(file)
    }
}
