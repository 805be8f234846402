//! Whether a terminal's user wants colours.

/// <https://no-color.org>, and terminals that say that they can do nothing.
pub(super) fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && capable()
}

/// Whether what is on a terminal can be changed.
pub(super) fn capable() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}
