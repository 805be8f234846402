//! Volumes as others see them: by what a watch is told, and with real replica processes.

mod processes;
mod watch;

use std::sync::Arc;

use paddock_api::journal::{Delivery, Journal};
use paddock_api::resource::EventKind;
use serde_json::{Value, json};

/// What has happened, each as `TYPE REPLICA`; the jobs left out. Nothing happens any more then.
fn told(journal: &Arc<Journal>) -> Vec<String> {
    let events = events(journal).into_iter();
    let events = events.filter(|kind| !matches!(kind, EventKind::Job { .. }));
    let line = |kind: EventKind| {
        let fields: Value = json!(kind);
        let replica = fields["replica"].as_str().unwrap_or_default();
        format!("{} {replica}", kind.name()).trim_end().to_owned()
    };
    events.map(line).collect()
}

fn events(journal: &Arc<Journal>) -> Vec<EventKind> {
    journal.close();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        let (mut follower, mut kinds) = (journal.follow(Some(0)), Vec::new());
        while let Some(delivery) = follower.next().await {
            if let Delivery::Event(event) = delivery {
                kinds.push(event.kind.clone());
            }
        }
        kinds
    })
}
