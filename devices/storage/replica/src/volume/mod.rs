//! An open volume: a chain of layers of which the top one, the head, is written.

pub mod chain;
pub mod change;
pub mod gate;
mod open;
pub mod remove;
pub mod replica;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;
