//! Longhorn's ControllerService, so that Longhorn's tools and whatever else drives its engines can drive a volume of this process: list, add, rebuild
//! and remove replicas, take snapshots and go back to them, grow the volume.
//!
//! It runs on the volume's control thread, on request only. Who connects is not asked who he is, as with Longhorn's engine, and may do everything
//! with the volume but take a disk from under a VM; what he can cost is limited: connections, calls on each, and bytes of a call.
//!
//! The volume's user is this process and no device, so it has no frontend that Longhorn had a name for: it is reported as none, and is up unless it was shut
//! down here.

mod connections;
mod describe;
mod meter;
mod service;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use paddock_longhorn::Identity;
use paddock_longhorn::controller::controller_service_server::ControllerServiceServer;
use tokio::sync::oneshot;
use tonic::service::InterceptorLayer;
use tonic::transport::Server;

use self::meter::Meter;
use self::service::Service;
use super::control::Control;
use super::error::VolumeError;

/// Calls at once on one connection.
const CALLS: u32 = 32;

/// Bytes of a call: a snapshot with many labels is the largest.
const MAX_CALL: usize = 256 << 10;

/// Bytes of a call's headers.
const MAX_HEADERS: u32 = 16 << 10;

/// How often a client that says nothing is asked whether it is there, and for how long.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// How a volume's controller service is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControllerOptions {
    /// The name of this engine. A client that names another is refused; `None` to take any.
    pub instance_name: Option<String>,
}

/// A controller service that is served, until this is dropped.
#[derive(Debug)]
pub struct Controller {
    address: SocketAddr,
    /// Dropping it ends the service.
    _stop: oneshot::Sender<()>,
}

impl Controller {
    /// Where it is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves it, on the control thread.
pub(super) async fn serve(
    control: &Arc<Control>,
    listener: TcpListener,
    options: ControllerOptions,
) -> Result<Controller, VolumeError> {
    let fail = |error: std::io::Error| VolumeError::Host {
        volume: control.options.name.clone(),
        problem: format!("its controller service cannot be served: {error}"),
    };
    listener.set_nonblocking(true).map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(fail)?;
    let identity = Identity {
        volume: control.options.name.clone(),
        instance: options.instance_name.unwrap_or_default(),
        role: "controller",
    };
    let meter = Arc::new(Meter::new(control));
    let service = Service::new(Arc::clone(control), Arc::clone(&meter));
    let service = ControllerServiceServer::new(service).max_decoding_message_size(MAX_CALL);
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<ControllerServiceServer<Service>>()
        .await;
    let (stop, stopped) = oneshot::channel();
    let server = Server::builder()
        .layer(InterceptorLayer::new(identity))
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(service)
        .add_service(health_service)
        .serve_with_incoming_shutdown(connections::incoming(listener), async move {
            // Either way it is over.
            let _ = stopped.await;
        });
    let volume = control.options.name.clone();
    tokio::spawn(async move {
        tokio::select! {
            served = server => {
                if let Err(error) = served {
                    tracing::error!(volume, %error, "the controller service is not served any more");
                }
            }
            () = meter.run() => {}
        }
    });
    tracing::info!(volume = %control.options.name, %address, "Longhorn's tools are served");
    Ok(Controller {
        address,
        _stop: stop,
    })
}
