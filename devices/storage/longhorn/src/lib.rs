//! The language of Longhorn's v1 data engine, as its engine and its replicas speak it: the frames of the data connection ([`wire`]), and
//! the messages and services of gRPC ([`messages`], [`replica`], [`sync_agent`], [`controller`]).
//!
//! Only the language: what is to be said when, is the engine's business and the replica's. Everything that is decoded here comes
//! from a peer and may be anything.

mod identity;
pub mod messages;
pub mod wire;

pub use identity::Identity;

/// `ptypes.ReplicaService`: what a replica process serves on its port.
#[expect(clippy::allow_attributes, unused_qualifications, reason = "generated")]
pub mod replica {
    tonic::include_proto!("ptypes.ReplicaService");
}

/// `ptypes.SyncAgentService`: what a replica's sync agent serves on the replica's port + 2.
#[expect(clippy::allow_attributes, unused_qualifications, reason = "generated")]
pub mod sync_agent {
    tonic::include_proto!("ptypes.SyncAgentService");
}

/// `ptypes.ControllerService`: what an engine serves.
#[expect(clippy::allow_attributes, unused_qualifications, reason = "generated")]
pub mod controller {
    tonic::include_proto!("ptypes.ControllerService");
}

/// The key of the gRPC metadata by which a client says which volume it means. A replica that knows its volume refuses calls for another.
pub const VOLUME_NAME: &str = "volume-name";

/// The key of the gRPC metadata by which a client says which process it means.
pub const INSTANCE_NAME: &str = "instance-name";
