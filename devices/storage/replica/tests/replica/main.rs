//! Whole replica processes, as engines and each other see them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod process;
mod rebuild;
