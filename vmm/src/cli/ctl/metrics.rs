//! `paddock ctl metrics`

use paddock_api::metrics::Snapshot;
use serde_json::{Map, Value, json};

use super::CtlError;
use super::client::{Call, ClientError};
use super::session::Session;

/// Prints the metrics, as they come or as JSON.
pub async fn execute(session: &Session) -> Result<(), CtlError> {
    let answer = session.client.call(Call::get(&["metrics"])).await?;
    if !session.json() {
        return session.print_foreign(answer.text.trim_end());
    }
    let snapshot = Snapshot::parse(&answer.text).map_err(|error| ClientError::Nonsense {
        socket: session.client.socket().to_owned(),
        detail: format!("its metrics are not understood: {error}"),
    })?;
    session.print_json(&samples(&snapshot).to_string())
}

fn samples(snapshot: &Snapshot) -> Value {
    let samples = snapshot.families().iter().flat_map(|f| &f.samples);
    let samples = samples.map(|sample| {
        let labels = sample.labels.iter().cloned();
        let labels: Map<_, _> = labels.map(|(name, value)| (name, json!(value))).collect();
        json!({"name": sample.name, "labels": labels, "value": sample.value})
    });
    samples.collect()
}
