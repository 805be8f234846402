//! The messages of gRPC, package `ptypes`, proto3. Where several calls have replies or requests of the same shape, they share one type here:
//! on the wire a message has no name.
//!
//! Numbers and names are those of Longhorn; a field that a peer does not know is skipped by it.

mod controller;
mod replica;
mod sync_agent;

pub use controller::*;
pub use replica::*;
pub use sync_agent::*;

/// `google.protobuf.Empty`.
pub type Empty = ();

/// A name.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NameMessage {
    /// The name; empty for one that the callee makes.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// A size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SizeRequest {
    /// In bytes.
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// A number of things.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct CountRequest {
    /// How many.
    #[prost(int32, tag = "1")]
    pub count: i32,
}

/// Something is to be so, or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SwitchRequest {
    /// Whether it is.
    #[prost(bool, tag = "1")]
    pub enabled: bool,
}
