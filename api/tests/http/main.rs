//! The HTTP server against a fake service: what it answers, what it refuses, and what clients cannot do to it.
//!
//! Every answer is held against the OpenAPI document as it is received. See [`harness`].
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(
    clippy::allow_attributes,
    reason = "not every module has such a helper"
)]

mod balloon;
mod cdroms;
mod clients;
mod cpus;
mod devices;
mod disks;
mod document;
mod events;
mod fake;
mod harness;
mod memory;
mod metrics;
mod refusals;
mod resources;
mod volumes;
