//! Answers held against the OpenAPI document.

use jsonschema::Validator;
use serde_json::{Value, json};

use super::harness::Answer;

/// The document that the server gives.
#[derive(Debug)]
pub struct Document(Value);

impl Document {
    pub fn load() -> Self {
        Self(serde_json::from_str(paddock_api::openapi::CHECKED_IN).unwrap())
    }

    /// Fails unless `answer` is one that the document has for the request.
    #[track_caller]
    pub fn check(&self, method: &str, target: &str, answer: &Answer) {
        let path = target.split('?').next().unwrap();
        let Some(operation) = self.operation(method, path) else {
            // Nothing is said about it, but it is a problem like all others.
            assert!(answer.status >= 400, "{method} {path}: {answer:?}");
            return self.check_problem(answer);
        };
        let response = &operation["responses"][answer.status.to_string()];
        assert!(
            response.is_object(),
            "{method} {path}: no status {} in the document",
            answer.status
        );
        match response["content"].as_object() {
            None => assert!(answer.body.is_empty(), "{method} {path}: {answer:?}"),
            Some(content) => {
                let media_type = answer.header("content-type").unwrap_or_default();
                let media_type = media_type.split(';').next().unwrap_or_default();
                let schema = &content[media_type]["schema"];
                match media_type {
                    // A stream has no end, so its body is not here.
                    "text/event-stream" => {}
                    "text/plain" => assert_eq!(schema["type"], "string"),
                    _ => self.check_schema(schema, &answer.json()),
                }
            }
        }
        if answer.status >= 400 {
            self.check_problem(answer);
        }
    }

    #[track_caller]
    fn check_problem(&self, answer: &Answer) {
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        let problem = answer.json();
        self.check_component("Problem", &problem);
        assert_eq!(problem["status"], answer.status, "{problem}");
        assert!(
            problem["detail"].as_str().unwrap().len() > 10,
            "{problem} says what is wrong"
        );
    }

    /// Fails unless `value` is a `name` of the document.
    #[track_caller]
    pub fn check_component(&self, name: &str, value: &Value) {
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        self.check_schema(&schema, value);
    }

    #[track_caller]
    fn check_schema(&self, schema: &Value, value: &Value) {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let validator = Validator::new(&whole).unwrap();
        let errors: Vec<_> = validator
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{value:#}\nis not {schema}: {errors:#?}");
    }

    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let paths = self.0["paths"].as_object().unwrap();
        let (_, methods) = paths.iter().find(|(template, _)| fits(template, path))?;
        methods.get(method.to_lowercase())
    }
}

/// Whether `path` is one of those that `template` stands for.
fn fits(template: &str, path: &str) -> bool {
    let (mut names, mut words) = (template.split('/'), path.split('/'));
    loop {
        match (names.next(), words.next()) {
            (None, None) => return true,
            (Some(name), Some(word)) if name == word || name.starts_with('{') => {}
            _ => return false,
        }
    }
}

#[test]
fn the_check_can_fail() {
    let document = Document::load();
    let event = json!({"seq": 1, "time_ms": 2, "type": "state", "state": "running"});
    document.check_component("Event", &event);
    for (key, value) in [
        ("seq", json!("1")),
        ("state", json!("fast")),
        ("type", json!("created?")),
    ] {
        let mut wrong = event.clone();
        wrong[key] = value;
        let checked = std::panic::catch_unwind(|| document.check_component("Event", &wrong));
        assert!(checked.is_err(), "{wrong}");
    }
    assert!(fits("/a/{b}", "/a/c") && !fits("/a/{b}", "/a") && !fits("/a", "/a/c"));
}
