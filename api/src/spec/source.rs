//! From text to a [`VmConfig`]: JSON and TOML, with every unknown field and wrong type reported at once.
//!
//! serde stops at the first error. So the document is first read as a tree; then, as long as the tree does not have the shape
//! of a `VmConfig`, the offending value is noted and taken out. What is left is a `VmConfig` whose values can be checked too.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::config::VmConfig;
use super::machine::VmSpec;
use super::pointer::JsonPointer;
use super::problem::{InvalidSpec, Problem, ProblemCode, Problems};
use super::types::ConsoleTarget;

/// The document is not JSON, or not TOML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {detail}")]
pub struct SyntaxError {
    /// Where, counted from 1.
    pub line: usize,
    /// Where, in characters counted from 1; 0 if unknown.
    pub column: usize,
    /// What is wrong, in one line.
    pub detail: String,
}

/// Why a text is not a valid VM spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// It is not even a document of its format.
    #[error("the VM spec cannot be parsed")]
    Syntax(#[from] SyntaxError),
    /// It says things that cannot be.
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
}

impl SpecError {
    /// The problems, sorted by place; none after a syntax error.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Syntax(_) => &[],
            Self::Invalid(error) => error.problems(),
        }
    }
}

/// A spec that has been read but not checked. Its `config` may still be changed; problems of the document it came from are
/// remembered and reported together with those of the values.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// What was read, without what could not be.
    pub config: VmConfig,
    problems: Problems,
}

impl Draft {
    /// Reads JSON. A key that appears twice in an object is an error.
    ///
    /// # Errors
    /// [`SyntaxError`] if the text is not JSON. Whatever else is wrong is reported by [`Self::validate`].
    pub fn from_json(text: &str) -> Result<Self, SyntaxError> {
        tree_from_json(text).map(Self::from_value)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// [`SyntaxError`] if the text is not TOML. Whatever else is wrong is reported by [`Self::validate`].
    pub fn from_toml(text: &str) -> Result<Self, SyntaxError> {
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let (line, column) = line_and_column(text, offset);
            SyntaxError {
                line,
                column,
                detail: error.message().replace('\n', "; "),
            }
        })?;
        Ok(Self::from_value(json_of_toml(toml::Value::Table(table))))
    }

    /// Takes a JSON tree.
    #[must_use]
    pub fn from_value(mut tree: Value) -> Self {
        let mut problems = Problems::default();
        let mut blanked = HashSet::new();
        refuse_arrays(&mut tree, &JsonPointer::root(), "", &mut problems);
        take_whole_numbers(&mut tree);
        while !problems.is_full() {
            let error = match serde_path_to_error::deserialize::<_, VmConfig>(&tree) {
                Ok(config) => return Self { config, problems },
                Err(error) => error,
            };
            let pointer = existing(&tree, pointer_of(error.path()));
            let (code, detail) = explain(&error.into_inner(), &pointer);
            problems.add(pointer.clone(), code, detail);
            if !take_out(&mut tree, &pointer, &mut blanked) {
                break;
            }
        }
        Self {
            config: VmConfig::default(),
            problems,
        }
    }

    /// For a VM that has no terminal: a console that names it is a problem, and the serial port, which has it by default, is off.
    #[must_use]
    pub fn without_terminal(mut self) -> Self {
        let console = self.config.console.get_or_insert_default();
        let at = JsonPointer::root().key("console");
        for (target, key) in [(&mut console.serial, "serial"), (&mut console.hvc0, "hvc0")] {
            if *target == Some(ConsoleTarget::Terminal) {
                let detail = "a VM made through the API has no terminal; use {\"socket\": \"PATH\"}, {\"file\": \"PATH\"} or \"off\"";
                self.problems
                    .add(at.key(key), ProblemCode::UnknownValue, detail);
                *target = Some(ConsoleTarget::Off);
            }
        }
        console.serial.get_or_insert(ConsoleTarget::Off);
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`InvalidSpec`] with all problems.
    pub fn validate(self) -> Result<VmSpec, InvalidSpec> {
        let mut problems = self.problems;
        let spec = super::validate::vm(&self.config, &mut problems);
        problems.finish()?;
        // Without a problem there is a spec; should that ever be broken, the user still gets an error and not a panic.
        spec.ok_or_else(InvalidSpec::without_reason)
    }
}

impl From<VmConfig> for Draft {
    fn from(config: VmConfig) -> Self {
        Self {
            config,
            problems: Problems::default(),
        }
    }
}

impl TryFrom<VmConfig> for VmSpec {
    type Error = InvalidSpec;

    fn try_from(config: VmConfig) -> Result<Self, InvalidSpec> {
        Draft::from(config).validate()
    }
}

impl VmSpec {
    /// Reads and checks JSON.
    ///
    /// # Errors
    /// [`SpecError`] with where the syntax is broken, or with all problems.
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        Ok(Draft::from_json(text)?.validate()?)
    }

    /// Reads and checks TOML.
    ///
    /// # Errors
    /// [`SpecError`] with where the syntax is broken, or with all problems.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        Ok(Draft::from_toml(text)?.validate()?)
    }
}

/// Reads a JSON text as a `T`, as strictly as a spec. Only the first thing that is wrong is told.
///
/// # Errors
/// [`SpecError`] with what it is and where.
pub(crate) fn read_json<T: de::DeserializeOwned>(text: &str) -> Result<T, SpecError> {
    let mut tree = tree_from_json(text)?;
    let mut arrays = Problems::default();
    refuse_arrays(&mut tree, &JsonPointer::root(), "", &mut arrays);
    arrays.finish()?;
    take_whole_numbers(&mut tree);
    serde_path_to_error::deserialize(&tree).map_err(|error| {
        let pointer = existing(&tree, pointer_of(error.path()));
        let inner = error.into_inner();
        let (code, detail) = match without_position(&inner) {
            text if text.starts_with("missing field") => (ProblemCode::MissingField, text),
            _ => explain(&inner, &pointer),
        };
        let problem = Problem {
            pointer,
            code,
            detail,
        };
        SpecError::Invalid(InvalidSpec::from_problems(vec![problem]))
    })
}

/// Reads JSON in which no object has a key twice.
pub(super) fn tree_from_json(text: &str) -> Result<Value, SyntaxError> {
    let tree: StrictTree = serde_json::from_str(text).map_err(|error| {
        // The end of the text is said to be on the line after it.
        let (line, column) = if error.is_eof() {
            line_and_column(text, text.trim_end().len())
        } else {
            (error.line(), error.column())
        };
        SyntaxError {
            line,
            column,
            detail: without_position(&error),
        }
    })?;
    Ok(tree.0)
}

/// Where arrays belong: the keys on the way there, without indices.
const ARRAYS: [&str; 7] = [
    "/disks",
    "/disks/volume/replicas",
    "/cdroms",
    "/nics",
    "/console/ports",
    "/boot/order",
    "/smbios/oem_strings",
];

/// Notes arrays where none belong and puts null, which stands for nothing, in their place: serde would take them for objects
/// without keys. `path` is `at` without indices.
fn refuse_arrays(tree: &mut Value, at: &JsonPointer, path: &str, problems: &mut Problems) {
    match tree {
        Value::Array(elements) if ARRAYS.contains(&path) => {
            for (index, element) in elements.iter_mut().enumerate() {
                // An array in an array must not pass for the outer one.
                refuse_arrays(element, &at.index(index), &format!("{path}/"), problems);
            }
        }
        Value::Array(_) => {
            let detail = "expected no array here";
            problems.add(at.clone(), ProblemCode::WrongType, detail);
            *tree = Value::Null;
        }
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{}/{key}", path.trim_end_matches('/'));
                refuse_arrays(value, &at.key(key), &path, problems);
            }
        }
        _ => {}
    }
}

/// Makes integers of the numbers that are whole, although they are written with a point or an exponent: to JSON Schema, and so to the OpenAPI
/// document, `2.0` is as good as `2`. Those that a double does not tell from their neighbours stay what they are.
fn take_whole_numbers(tree: &mut Value) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match tree {
        Value::Number(number) if number.is_f64() => {
            let value = number.as_f64().unwrap_or(f64::NAN);
            if value.fract() == 0.0 && value.abs() < EXACT {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a whole number within 2^53"
                )]
                let whole = value as i64;
                *tree = whole.into();
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(take_whole_numbers),
        Value::Object(map) => map.values_mut().for_each(take_whole_numbers),
        _ => {}
    }
}

/// Takes the value at `pointer` out of the tree; an array's element is blanked instead, so that the others keep their index. One that must not
/// be blank takes its array with it.
/// `false` if that was tried before or cannot be.
fn take_out(tree: &mut Value, pointer: &JsonPointer, blanked: &mut HashSet<JsonPointer>) -> bool {
    let Some((parent, last)) = pointer.split_last() else {
        return false;
    };
    match tree.pointer_mut(parent.as_str()) {
        Some(Value::Object(map)) => map.remove(&last).is_some(),
        Some(Value::Array(elements)) => {
            let element = last
                .parse()
                .ok()
                .and_then(|index: usize| elements.get_mut(index));
            if let Some(element) = element {
                *element = Value::Object(Map::new());
                return blanked.insert(pointer.clone()) || take_out(tree, &parent, blanked);
            }
            false
        }
        _ => false,
    }
}

/// The place nearest to `pointer` that the tree has.
fn existing(tree: &Value, mut pointer: JsonPointer) -> JsonPointer {
    while tree.pointer(pointer.as_str()).is_none() {
        match pointer.split_last() {
            Some((parent, _)) => pointer = parent,
            None => break,
        }
    }
    pointer
}

fn pointer_of(path: &Path) -> JsonPointer {
    path.iter()
        .fold(JsonPointer::root(), |pointer, segment| match segment {
            Segment::Map { key } => pointer.key(key),
            Segment::Enum { variant } => pointer.key(variant),
            Segment::Seq { index } => pointer.index(*index),
            Segment::Unknown => pointer,
        })
}

/// The code and message for what serde says about a tree.
fn explain(error: &serde_json::Error, pointer: &JsonPointer) -> (ProblemCode, String) {
    let text = without_position(error);
    if text.starts_with("unknown field ") {
        return (ProblemCode::UnknownField, unknown_field(&text, pointer));
    }
    if let Some(rest) = text.strip_prefix("unknown variant ") {
        let detail = format!(
            "unknown value {}",
            rest.replace("expected one of", "expected")
        );
        return (ProblemCode::UnknownValue, detail);
    }
    let expectation = text
        .strip_prefix("invalid type: ")
        .or_else(|| text.strip_prefix("invalid value: "));
    if let Some(rest) = expectation {
        let detail = rest.rsplit_once(", expected ").map_or_else(
            || rest.to_owned(),
            |(found, expected)| format!("expected {}, found {}", in_words(expected), cut(found)),
        );
        return (ProblemCode::WrongType, detail);
    }
    (ProblemCode::Malformed, text)
}

/// The message for an unknown field, with the nearest of those that serde lists.
fn unknown_field(text: &str, pointer: &JsonPointer) -> String {
    let field = pointer
        .split_last()
        .map(|(_, field)| field)
        .unwrap_or_default();
    // serde lists the fields it knows in backquotes after the last "expected".
    let known: Vec<&str> = text
        .rsplit_once("expected ")
        .map(|(_, list)| list.split('`').skip(1).step_by(2).collect())
        .unwrap_or_default();
    let nearest = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, &field), known))
        .filter(|(distance, known)| *distance <= known.len() / 3 + 1)
        .min()
        .map(|(_, known)| format!("did you mean \"{known}\"? "))
        .unwrap_or_default();
    format!(
        "unknown field; {nearest}{} {}",
        if known.len() == 1 {
            "the field known here is"
        } else {
            "the fields known here are"
        },
        known.join(", ")
    )
}

/// A JSON reader's name of a type, for people.
fn in_words(expected: &str) -> &str {
    match expected {
        "u64" => "an integer from 0 up",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "map with a single key" => "an object with a single key",
        "path string" => "a path",
        other => other,
    }
}

fn cut(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// The message of a JSON error without " at line 1 column 2", which is told otherwise.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((detail, _)) if error.line() != 0 => detail.to_owned(),
        _ => text,
    }
}

/// Line and column, both from 1, of a byte offset.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text
        .char_indices()
        .take_while(|(at, _)| *at < offset)
        .map(|(_, c)| c);
    before.fold((1, 1), |(line, column), c| match c {
        '\n' => (line + 1, 1),
        _ => (line, column + 1),
    })
}

/// A TOML tree as JSON. Dates become texts and numbers that JSON lacks become null: no field of a spec takes either.
fn json_of_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(date) => Value::String(date.to_string()),
        toml::Value::Array(elements) => elements.into_iter().map(json_of_toml).collect(),
        toml::Value::Table(table) => table
            .into_iter()
            .map(|(key, value)| (key, json_of_toml(value)))
            .collect(),
    }
}

/// A JSON tree in which no object has a key twice: `serde_json::Value` would silently keep the last one.
struct StrictTree(Value);

impl<'de> Deserialize<'de> for StrictTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Self)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(StrictTree(element)) = access.next_element()? {
            elements.push(element);
        }
        Ok(elements.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!(
                    "the key {} appears twice in one object",
                    super::problem::quoted(&key)
                )));
            }
            let StrictTree(value) = access.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}
