//! A replica of a volume, in the protocol and the files of Longhorn's v1 data engine: an engine of either kind can use it, and a directory that
//! one kind of replica wrote opens in the other.
//!
//! A directory and its files are in [`files`], the layers of an open volume and what changes them in [`volume`], data connections in [`data`],
//! gRPC in [`control`], transfers and purges in [`agent`], and all of it together in [`process`].

pub mod agent;
pub mod control;
pub mod data;
pub mod error;
pub mod files;
pub mod process;
pub mod size;
#[cfg(test)]
mod testing;
pub mod volume;

pub use error::{Error, Result};
