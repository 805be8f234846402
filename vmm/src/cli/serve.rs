//! `paddock serve`: a process that offers the HTTP API and has no VM until a client makes one.
//!
//! Everything here runs on the control plane's thread. The VM lives in a [`VmSlot`]; what is left to do is to wait for the signal that
//! ends the process, and then to bring the VM to its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use paddock_api::server::{Limits, Server};
use paddock_api::service::VmService;

use super::args::ServeArgs;
use super::endpoint::{Endpoint, EndpointError};
use super::process::{
    API_DEADLINE, Ending, Meaning, Signals, Stuck, ending_takes, raise_descriptor_limit, runtime,
};
use super::{Status, fail, logging};
use crate::driver::{VmHandle, VmState};
use crate::error::chain;
use crate::kvm::passed::{PassedKvmError, use_passed};
use crate::metrics::timeline;
use crate::slot::VmSlot;
use crate::systemd::herald::{Herald, Role};
use crate::systemd::inherited::inherited;

/// Why `paddock serve` failed.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(
        "--api-socket is missing: say where, or pass a listening socket in, which no LISTEN_FDS of this process lists"
    )]
    Nowhere,
    #[error(transparent)]
    Socket(#[from] EndpointError),
    #[error(transparent)]
    Kvm(#[from] PassedKvmError),
    #[error("starting the control plane")]
    Runtime(#[from] io::Error),
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// `paddock serve`
pub(super) fn serve(args: &ServeArgs) -> Status {
    if let Err(error) = logging::start(args.log) {
        return fail(Status::Error, &format!("starting to log: {error}"));
    }
    raise_descriptor_limit();
    match serve_until_signalled(args) {
        Ok(()) => Status::Success,
        Err(error) => {
            let usage = match &error {
                ServeError::Nowhere => true,
                ServeError::Socket(cause) => cause.is_usage(),
                _ => false,
            };
            let status = if usage { Status::Usage } else { Status::Error };
            fail(status, &chain(&error))
        }
    }
}

fn serve_until_signalled(args: &ServeArgs) -> Result<(), ServeError> {
    let passed = &inherited().descriptors;
    use_passed(args.kvm.as_ref(), passed)?;
    let endpoint = Endpoint::choose(args.api_socket.as_deref(), passed, &[])?;
    let endpoint = endpoint.ok_or(ServeError::Nowhere)?;
    let socket = endpoint.open(passed)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        // Before the first client can know that the process is there.
        let signals = Signals::catch()?;
        let slot = VmSlot::default();
        let server = Server::start(socket, Arc::new(slot.clone()), Limits::default())?;
        timeline::api_ready();
        let notify = inherited().notify.as_ref();
        let herald = Herald::start(notify, Role::Serve, slot.journal());
        tracing::info!(socket = %endpoint, "the API is ready");
        let grace = Duration::from_secs(args.shutdown_timeout);
        let ended = attend(&slot, signals, &herald, grace).await;
        herald.finish().await;
        server.shut_down(API_DEADLINE).await;
        Ok(ended?)
    });
    // A step that hangs on a blocking thread must not hold the process.
    runtime.shutdown_background();
    result
}

/// Waits for a signal that ends the process, and then for the end of the VM, if there is one.
async fn attend(
    slot: &VmSlot,
    mut signals: Signals,
    herald: &Herald,
    grace: Duration,
) -> Result<(), Stuck> {
    let mut meaning = signals.next().await;
    while meaning == Meaning::Resumed {
        meaning = signals.next().await;
    }
    herald.stopping(ending_takes(grace));
    slot.close();
    let Some(vm) = slot.vm() else {
        return Ok(());
    };
    let mut ending = Ending::new(vm.clone(), grace);
    if vm.state() != VmState::Ended {
        end(&vm, &mut ending, meaning, &mut signals).await?;
    }
    ending.release(&mut signals).await;
    Ok(())
}

/// Brings the VM to its end, as the first signal and those after it say.
async fn end(
    vm: &VmHandle,
    ending: &mut Ending,
    first: Meaning,
    signals: &mut Signals,
) -> Result<(), Stuck> {
    let mut meaning = Some(first);
    loop {
        match meaning.take() {
            Some(Meaning::End) => ending.interrupt()?,
            Some(Meaning::EndNow) => ending.stop()?,
            Some(Meaning::Resumed) | None => {}
        }
        tokio::select! {
            () = vm.ended() => return Ok(()),
            next = signals.next() => meaning = Some(next),
            () = ending.deadline() => ending.timeout()?,
        }
    }
}
