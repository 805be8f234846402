//! What fw_cfg hands out: items by number, files by name, and the directory that lists the files.
//!
//! Put together on the thread that builds the machine. The guest cannot add any.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes of a file's name in the directory, without the NUL.
pub const NAME_MAX: usize = 55;
/// Files that there can be: what keys there are for them.
const FILES_MAX: usize = (FILE_KEYS_END - FILE_KEYS) as usize;

/// Key of "QEMU": there is fw_cfg.
const SIGNATURE: u16 = 0x00;
/// Key of the interfaces: bit 0 ports, bit 1 DMA.
const FEATURES: u16 = 0x01;
const BY_PORTS_AND_DMA: u32 = 0b11;
const DIRECTORY: u16 = 0x19;
/// The files' keys.
const FILE_KEYS: u16 = 0x20;
const FILE_KEYS_END: u16 = 0x4000;
/// Set in a key: reach the item for writing. It is the same item.
const WRITE_CHANNEL: u16 = 0x4000;

/// A file whose contents are made when the guest has selected it and asks for its first byte, on its vCPU thread: what depends on what
/// the guest did before.
pub trait LateItem: Send + Sync + fmt::Debug {
    /// The contents as of now: of the announced size, or else cut or filled with zeros to it.
    fn make(&self) -> Vec<u8>;
}

/// Told on a vCPU thread what the guest has put into a file that is for it to write.
pub trait WrittenItem: Send + Sync + fmt::Debug {
    /// All of it, after each transfer.
    fn written(&self, contents: &[u8]);
}

/// One item.
#[derive(Debug)]
pub(super) enum Item {
    Fixed(Arc<[u8]>),
    Late {
        size: usize,
        maker: Arc<dyn LateItem>,
    },
    Written {
        contents: Mutex<Arc<[u8]>>,
        watcher: Arc<dyn WrittenItem>,
    },
}

impl Item {
    pub(super) fn contents(&self) -> Arc<[u8]> {
        match self {
            Self::Fixed(contents) => Arc::clone(contents),
            Self::Late { size, maker } => {
                let mut contents = maker.make();
                contents.resize(*size, 0);
                contents.into()
            }
            Self::Written { contents, .. } => Arc::clone(&contents.lock()),
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Fixed(contents) => contents.len(),
            Self::Late { size, .. } => *size,
            Self::Written { contents, .. } => contents.lock().len(),
        }
    }

    /// Changes what the guest may write, with `fill`, which gets `count` bytes at `offset` and says whether they are good. `None`: not
    /// for it to write, not in it, or not good.
    pub(super) fn write(
        &self,
        offset: usize,
        count: usize,
        fill: impl FnOnce(&mut [u8]) -> bool,
    ) -> Option<Arc<[u8]>> {
        let Self::Written { contents, watcher } = self else {
            return None;
        };
        let mut contents = contents.lock();
        let mut new = contents.to_vec();
        let end = offset.checked_add(count)?;
        if !fill(new.get_mut(offset..end)?) {
            return None;
        }
        *contents = new.into();
        watcher.written(&contents);
        Some(Arc::clone(&contents))
    }
}

/// Why an item cannot be handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// A name that the directory has no room for, or that firmware would read differently.
    #[error("fw_cfg file {0:?}: a name has 1 to 55 printable ASCII characters")]
    Name(String),
    /// A second one.
    #[error("fw_cfg file {0}: there is one of this name already")]
    SameName(String),
    /// A second one, or one of fw_cfg's own.
    #[error("fw_cfg item {0:#x}: the number is taken")]
    SameKey(u16),
    /// One file too many.
    #[error("fw_cfg: there can be no more than {FILES_MAX} files")]
    TooMany,
    /// More than a 32-bit length.
    #[error("fw_cfg file {0}: larger than 4 GiB")]
    TooLarge(String),
}

/// Everything that a guest's firmware is handed.
#[derive(Debug)]
pub struct FwCfgItems {
    items: BTreeMap<u16, Arc<Item>>,
    /// Names and keys, sorted by name.
    files: BTreeMap<String, u16>,
}

impl Default for FwCfgItems {
    fn default() -> Self {
        Self::new()
    }
}

impl FwCfgItems {
    /// Nothing but that there is fw_cfg.
    #[must_use]
    pub fn new() -> Self {
        let mut this = Self {
            items: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        this.put(SIGNATURE, b"QEMU");
        this.put(FEATURES, &BY_PORTS_AND_DMA.to_le_bytes());
        this.list_files();
        this
    }

    fn put(&mut self, key: u16, contents: &[u8]) {
        self.items
            .insert(key, Arc::new(Item::Fixed(contents.into())));
    }

    /// Adds an item without a name, such as 5, the number of CPUs.
    ///
    /// # Errors
    /// When the number is taken or one of the files'.
    pub fn add_item(&mut self, key: u16, contents: &[u8]) -> Result<(), FwCfgError> {
        let a_files = key & !0x8000 >= FILE_KEYS;
        if a_files || self.items.contains_key(&key) {
            return Err(FwCfgError::SameKey(key));
        }
        self.put(key, contents);
        Ok(())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When its name is bad or taken, or there are too many.
    pub fn add_file(
        &mut self,
        name: &str,
        contents: impl Into<Arc<[u8]>>,
    ) -> Result<(), FwCfgError> {
        self.add(name, Item::Fixed(contents.into()))
    }

    /// Adds a file of `size` bytes that is made late.
    ///
    /// # Errors
    /// As [`FwCfgItems::add_file`].
    pub fn add_late_file(
        &mut self,
        name: &str,
        size: usize,
        maker: Arc<dyn LateItem>,
    ) -> Result<(), FwCfgError> {
        self.add(name, Item::Late { size, maker })
    }

    /// Adds a file for the guest to write, with its first contents; its size stays.
    ///
    /// # Errors
    /// As [`FwCfgItems::add_file`].
    pub fn add_written_file(
        &mut self,
        name: &str,
        contents: impl Into<Arc<[u8]>>,
        watcher: Arc<dyn WrittenItem>,
    ) -> Result<(), FwCfgError> {
        let contents = Mutex::new(contents.into());
        self.add(name, Item::Written { contents, watcher })
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    fn add(&mut self, name: &str, item: Item) -> Result<(), FwCfgError> {
        let fits = (1..=NAME_MAX).contains(&name.len());
        if !fits || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.files.contains_key(name) {
            return Err(FwCfgError::SameName(name.to_owned()));
        }
        if u32::try_from(item.size()).is_err() {
            return Err(FwCfgError::TooLarge(name.to_owned()));
        }
        let taken = u16::try_from(self.files.len()).map_err(|_| FwCfgError::TooMany)?;
        let key = FILE_KEYS
            .checked_add(taken)
            .filter(|key| *key < FILE_KEYS_END)
            .ok_or(FwCfgError::TooMany)?;
        self.items.insert(key, Arc::new(item));
        self.files.insert(name.to_owned(), key);
        self.list_files();
        Ok(())
    }

    /// Writes the directory: big endian; count, then size, key, two bytes of nothing and name for each.
    fn list_files(&mut self) {
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut directory = count.to_be_bytes().to_vec();
        for (name, key) in &self.files {
            let size = self.items.get(key).map_or(0, |item| item.size());
            let size = u32::try_from(size).unwrap_or(u32::MAX);
            let mut field = [0; NAME_MAX + 1];
            for (byte, letter) in field.iter_mut().zip(name.bytes()) {
                *byte = letter;
            }
            directory.extend(size.to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(field);
        }
        self.put(DIRECTORY, &directory);
    }

    pub(super) fn get(&self, key: u16) -> Option<Arc<Item>> {
        self.items.get(&(key & !WRITE_CHANNEL)).map(Arc::clone)
    }
}
