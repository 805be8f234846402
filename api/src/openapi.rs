//! The OpenAPI document: made from the handlers' and types' annotations, kept as a file, served from there.
//!
//! The file is what a running process serves and what clients are generated from, so a change of the API is a change one sees in review. A test
//! holds the two equal; `UPDATE_OPENAPI=1 cargo test -p paddock-api openapi` writes the file anew.

use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi as Api, RefOr};
use utoipa::{Modify, OpenApi};

use crate::problem::{MEDIA_TYPE, Problem};
use crate::resource::{Event, Gap};
use crate::server::handlers;

/// The document as it is checked in.
pub const CHECKED_IN: &str = include_str!("../openapi.json");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Paddock",
        description = "One process, one VM. HTTP/1.1 on a unix socket, for the process's own user and root."
    ),
    paths(
        handlers::create_vm,
        handlers::read_vm,
        handlers::delete_vm,
        handlers::act,
        handlers::list_disks,
        handlers::add_disk,
        handlers::read_disk,
        handlers::remove_disk,
        handlers::resize_disk,
        handlers::limit_disk,
        handlers::list_replicas,
        handlers::add_replica,
        handlers::remove_replica,
        handlers::list_snapshots,
        handlers::take_snapshot,
        handlers::remove_snapshot,
        handlers::list_nics,
        handlers::add_nic,
        handlers::read_nic,
        handlers::remove_nic,
        handlers::list_cdroms,
        handlers::read_cdrom,
        handlers::insert_medium,
        handlers::eject_medium,
        handlers::read_cpus,
        handlers::set_cpus,
        handlers::read_memory,
        handlers::set_memory,
        handlers::read_balloon,
        handlers::set_balloon,
        handlers::read_memory_statistics,
        handlers::list_jobs,
        handlers::read_job,
        handlers::cancel_job,
        handlers::follow,
        handlers::read_metrics,
        handlers::read_openapi
    ),
    components(schemas(Event, Gap, Problem)),
    modifiers(&NoNullDefaults, &NoNullParameters, &OneKey, &ProblemMediaType),
    tags(
        (name = "vm", description = "The VM of this process."),
        (name = "devices", description = "Its disks and network interfaces."),
        (name = "volumes", description = "Disks that are replicated volumes: their replicas and snapshots."),
        (name = "cdroms", description = "Its CD-ROM drives, and the media in them."),
        (name = "cpus", description = "How many CPUs the guest has; more or fewer while it runs."),
        (name = "memory", description = "How much memory the guest has; more or less while it runs."),
        (name = "balloon", description = "Memory taken from the guest while it runs, and what it says of its memory."),
        (name = "jobs", description = "What takes a while."),
        (name = "events", description = "What happens to it."),
        (name = "metrics", description = "What it does and costs, in numbers."),
        (name = "api", description = "The API itself.")
    )
)]
struct Document;

/// The spec's types say of every field that it is null by default: of those that must be given, that is wrong, and of the others noise.
struct NoNullDefaults;

impl Modify for NoNullDefaults {
    fn modify(&self, api: &mut Api) {
        let schemas = api.components.iter_mut().flat_map(|c| &mut c.schemas);
        for (_, schema) in schemas {
            let RefOr::T(Schema::Object(object)) = schema else {
                continue;
            };
            for property in object.properties.values_mut() {
                let default = match property {
                    RefOr::T(Schema::Object(of)) => &mut of.default,
                    RefOr::T(Schema::OneOf(of)) => &mut of.default,
                    _ => continue,
                };
                if default.as_ref().is_some_and(serde_json::Value::is_null) {
                    *default = None;
                }
            }
        }
    }
}

/// An `Option` that is a parameter may be left out; in a URL or a header there is no null.
struct NoNullParameters;

impl Modify for NoNullParameters {
    fn modify(&self, api: &mut Api) {
        for item in api.paths.paths.values_mut() {
            for parameter in operations(item).flat_map(|o| o.parameters.iter_mut().flatten()) {
                if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema {
                    without_null(&mut schema.schema_type);
                }
            }
        }
    }
}

/// An object that stands for one of several choices has the key of one of them, and no other.
struct OneKey;

impl Modify for OneKey {
    fn modify(&self, api: &mut Api) {
        let schemas = api.components.as_mut().map(|c| &mut c.schemas);
        let Some(schemas) = schemas else {
            return;
        };
        for name in ["ConsoleTarget", "OnErrorConfig"] {
            let Some(RefOr::T(Schema::OneOf(choices))) = schemas.get_mut(name) else {
                continue;
            };
            for choice in &mut choices.items {
                if let RefOr::T(Schema::Object(object)) = choice {
                    if !object.properties.is_empty() {
                        object.additional_properties =
                            Some(Box::new(AdditionalProperties::FreeForm(false)));
                    }
                }
            }
        }
    }
}

/// The body of a refusal is a problem, which has a media type of its own.
struct ProblemMediaType;

impl Modify for ProblemMediaType {
    fn modify(&self, api: &mut Api) {
        for item in api.paths.paths.values_mut() {
            for operation in operations(item) {
                for (status, response) in &mut operation.responses.responses {
                    let RefOr::T(response) = response else {
                        continue;
                    };
                    if status.as_str() >= "400" {
                        let content = std::mem::take(&mut response.content);
                        let content = content.into_values();
                        response.content = content.map(|c| (MEDIA_TYPE.to_owned(), c)).collect();
                    }
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let methods = [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
    ];
    methods.into_iter().flatten()
}

fn without_null(of: &mut SchemaType) {
    let SchemaType::Array(types) = of else {
        return;
    };
    types.retain(|one| *one != Type::Null);
    if let [one] = types.as_slice() {
        *of = SchemaType::Type(one.clone());
    }
}

/// The document as the code says it.
///
/// # Errors
/// When it cannot be written as JSON, which would be a bug.
pub fn generate() -> serde_json::Result<String> {
    let mut text = Document::openapi().to_pretty_json()?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_checked_in_document_is_what_the_code_says() {
        let generated = generate().unwrap();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
            std::fs::write(path, generated).unwrap();
            return;
        }
        assert!(
            generated == CHECKED_IN,
            "the API changed: look at the difference after UPDATE_OPENAPI=1 cargo test -p paddock-api openapi"
        );
    }

    #[test]
    fn every_path_is_documented_and_every_documented_path_is_there() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut documented = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                documented.insert((method.to_uppercase(), path.clone()));
            }
        }
        let served: BTreeSet<_> = handlers::all()
            .into_iter()
            .map(|(method, path, _)| (method.to_owned(), path.to_owned()))
            .collect();
        assert_eq!(documented, served);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(tree: &'a serde_json::Value, found: &mut Vec<&'a str>) {
            match tree {
                serde_json::Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(|reference| reference.as_str()));
                    map.values().for_each(|value| references(value, found));
                }
                serde_json::Value::Array(list) => {
                    list.iter().for_each(|value| references(value, found));
                }
                _ => {}
            }
        }
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn parameters_are_never_null() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations = paths.values().flat_map(|path| path.as_object().unwrap());
        let parameters =
            operations.flat_map(|(_, o)| o["parameters"].as_array().into_iter().flatten());
        let types: Vec<_> = parameters
            .map(|parameter| &parameter["schema"]["type"])
            .collect();
        assert!(types.len() > 5, "{types:?}");
        assert!(types.iter().all(|of| !of.is_array()), "{types:?}");
    }

    /// What the document allows of a text is what the spec's types take.
    #[test]
    fn texts_are_described_as_narrowly_as_they_are_read() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let schemas = &document["components"]["schemas"];
        let takes = |schema: &serde_json::Value, value: &str| {
            jsonschema::is_valid(schema, &serde_json::Value::from(value))
        };
        let size = &schemas["ByteSize"]["oneOf"][0];
        for (text, good) in [("1", true), ("1 MiB", true), ("1MB", false), ("1 ", false)] {
            assert_eq!(takes(size, text), good, "{text:?}");
            assert_eq!(
                text.parse::<crate::spec::ByteSize>().is_ok(),
                good,
                "{text:?}"
            );
        }
        let target = schemas["ConsoleTarget"]["oneOf"].as_array().unwrap();
        let objects = target.iter().filter(|choice| choice["type"] == "object");
        let closed = objects.filter(|choice| choice["additionalProperties"] == false);
        assert_eq!(closed.count(), 2, "a file, or a socket");
        let name = &schemas["PortConfig"]["properties"]["name"];
        for (text, good) in [("a", true), ("a.b", true), (".a", false), ("", false)] {
            assert_eq!(takes(name, text), good, "{text:?}");
            assert_eq!(
                text.parse::<crate::spec::PortName>().is_ok(),
                good,
                "{text:?}"
            );
        }
        assert!(!takes(&schemas["Path"], ""));
        assert_eq!(schemas["ConsoleLogConfig"]["required"][0], "path");
        let removal = &document["paths"]["/api/v1/vm/disks/{id}"]["delete"]["parameters"];
        assert_eq!(removal[1]["schema"]["maximum"], 3_600_000);
    }
}
