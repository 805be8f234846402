//! The commands against a server with canned answers.

mod answers;
mod commands;
mod ending;
mod fake;
mod nonsense;
mod streams;
mod terminal;
mod waiting;
