//! What figures of storage compete on: sets of replicas, and a file. Those that a figure leaves as they were serve the next one too.

use std::fs::File;
use std::path::PathBuf;
use std::rc::Rc;

use tempfile::TempDir;

use super::load::Subject;
use crate::bench::BenchError;
use crate::longhorn::{Engine, EngineOptions, Replica, ReplicaOptions, directory, volume_name};

/// Bytes of a volume, and of the file.
pub(super) const SIZE: u64 = 256 << 20;
/// So many replicas, as Longhorn has by default.
pub(super) const REPLICAS: usize = 3;

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
    /// Starts so many of Longhorn's.
    pub(super) fn start(count: usize) -> Self {
        let volume = volume_name("bench");
        let mut set = Self {
            options: ReplicaOptions::of(&volume),
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
    set: Option<Rc<Set>>,
    file: Option<Rc<DataFile>>,
}

impl Yard {
    /// Replicas that are full of data, and stay so.
    pub(super) fn set(&mut self) -> Result<Rc<Set>, BenchError> {
        if let Some(set) = &self.set {
            return Ok(Rc::clone(set));
        }
        let set = Rc::new(Set::start(REPLICAS));
        set.subject().fill()?;
        self.set = Some(Rc::clone(&set));
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
