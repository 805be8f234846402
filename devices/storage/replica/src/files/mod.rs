//! A replica's directory and what is in it: names, metadata, images, the counter of writes. What is found there is not trusted.

pub mod counter;
pub mod directory;
pub mod extents;
pub mod image;
pub mod memory;
pub mod metadata;
pub mod names;
