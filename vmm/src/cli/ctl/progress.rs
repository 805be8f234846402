//! How far a command is, on standard error: standard output may be read by a program.
//!
//! On a terminal it is one line that changes: a bar where something is counted, something that turns where nothing is. Elsewhere, in a
//! service's log or a pipe, it is a plain line whenever there is news, and none for what is done at once.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use paddock_api::jobs::JobProgress;

use super::{harmless, render};
use crate::cli::{colours, logging};

/// With what cannot be counted.
const SPINNER: &str = "{spinner} {wide_msg}";
/// With what can be.
const BAR: &str = "{bar:20} {pos}/{len} {wide_msg}";
/// With bytes, of which the stage tells how many in words.
const BYTES: &str = "{bar:20} {wide_msg}";
/// How often it is shown how long something has taken.
const TICK: Duration = Duration::from_millis(100);
/// What takes no longer has no plain lines.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What is counted of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// How much of it is done.
    pub progress: JobProgress,
    /// They are so many that their number says nothing to people.
    pub bytes: bool,
}

/// What is told of something that is waited for.
#[derive(Debug)]
pub enum Progress {
    /// On a terminal.
    Line(ProgressBar),
    /// Elsewhere.
    Lines(Lines),
}

impl Progress {
    /// Begins.
    pub fn start() -> Self {
        let target = ProgressDrawTarget::stderr();
        if colours::capable() && !target.is_hidden() {
            return Self::Line(line(target));
        }
        Self::Lines(Lines::default())
    }

    /// Tells from now on: how far it is, how long it takes, and how much is done.
    pub fn tell(&mut self, stage: &str, time: &str, counted: Option<Counted>) {
        match self {
            Self::Line(bar) => draw(bar, stage, time, counted),
            Self::Lines(lines) => {
                if let Some(line) = lines.news(stage, Instant::now()) {
                    logging::tell(&line);
                }
            }
        }
    }

    /// Tells this, and for how long, until something is done.
    pub async fn during<T>(&mut self, stage: &str, done: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let telling = async {
            loop {
                let waited = render::duration(started.elapsed());
                self.tell(stage, &waited, None);
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::select! {
            biased;
            result = done => result,
            never = telling => never,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Line(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// On a terminal, with nothing counted so far.
fn line(target: ProgressDrawTarget) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target);
    set_style(&bar, SPINNER);
    bar
}

fn set_style(bar: &ProgressBar, template: &str) {
    // The templates are right, and there is a style by default.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// What is on the terminal.
fn draw(bar: &ProgressBar, stage: &str, time: &str, counted: Option<Counted>) {
    // A bar without a length, or one whose numbers make no sense, says nothing.
    let counted = counted.filter(|counted| counted.progress.total > 0);
    let template = match counted {
        None => SPINNER,
        Some(Counted { bytes: true, .. }) => BYTES,
        Some(_) => BAR,
    };
    let counted = counted.map(|counted| counted.progress);
    if bar.length() != counted.map(|counted| counted.total) {
        set_style(bar, template);
        match counted {
            Some(counted) => bar.set_length(counted.total),
            None => bar.unset_length(),
        }
    }
    if let Some(JobProgress { done, total }) = counted {
        bar.set_position(done.min(total));
    }
    let parts = [stage, time].map(harmless::line);
    let [stage, time] = &parts;
    let message = if time.is_empty() {
        stage.clone()
    } else {
        format!("{stage}, {time}")
    };
    bar.set_message(message);
    bar.tick();
}

/// Plain lines, each once.
#[derive(Debug)]
pub struct Lines {
    since: Instant,
    last: String,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            last: String::new(),
        }
    }
}

impl Lines {
    /// The line that is to be told now, if there is one.
    fn news(&mut self, stage: &str, now: Instant) -> Option<String> {
        if now.duration_since(self.since) < AT_ONCE || self.last == stage {
            return None;
        }
        stage.clone_into(&mut self.last);
        Some(harmless::line(stage))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use indicatif::TermLike;
    use parking_lot::Mutex;

    use super::*;

    /// The line of a terminal on which there is only one.
    #[derive(Debug, Clone, Default)]
    struct OneLine(Arc<Mutex<String>>);

    impl TermLike for OneLine {
        fn width(&self) -> u16 {
            80
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().clear();
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is there after all of this was told.
    fn shown(told: &[(&str, &str, Option<Counted>)]) -> String {
        let terminal = OneLine::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
        let bar = line(target);
        for (stage, time, counted) in told {
            draw(&bar, stage, time, *counted);
            bar.force_draw();
        }
        let line = terminal.0.lock();
        line.trim_end().to_owned()
    }

    fn counted(done: u64, total: u64) -> Option<Counted> {
        Some(Counted {
            progress: JobProgress { done, total },
            bytes: false,
        })
    }

    #[test]
    fn bytes_are_told_in_words_only() {
        let bytes = counted(1 << 30, 4 << 30).map(|counted| Counted {
            bytes: true,
            ..counted
        });
        let line = shown(&[("rebuilding, 1 GiB of 4 GiB", "7 s", bytes)]);
        assert_eq!(line, "█████░░░░░░░░░░░░░░░ rebuilding, 1 GiB of 4 GiB, 7 s");
    }

    #[test]
    fn a_bar_where_something_is_counted() {
        let line = shown(&[("job 3: opening, 1 of 2 CPUs", "0.1 s", counted(1, 2))]);
        assert_eq!(
            line,
            "██████████░░░░░░░░░░ 1/2 job 3: opening, 1 of 2 CPUs, 0.1 s"
        );
        let line = shown(&[
            ("opening", "0.1 s", None),
            ("b\x1b[2J", "1 s", counted(9, 4)),
        ]);
        assert_eq!(line, "████████████████████ 4/4 b\\u{1b}[2J, 1 s");
    }

    #[test]
    fn something_that_turns_where_nothing_is() {
        for told in [None, counted(0, 0)] {
            let line = shown(&[("a", "", counted(1, 2)), ("opening", "0.1 s", told)]);
            assert!(line.ends_with(" opening, 0.1 s"), "{line}");
            assert!(!line.contains(['█', '░', '/']), "{line}");
        }
        assert!(shown(&[("stopping", "", None)]).ends_with(" stopping"));
    }

    #[test]
    fn plain_lines_are_news() {
        let mut lines = Lines::default();
        let begun = lines.since;
        let mut told = Vec::new();
        for (after, stage) in [
            (0, "opening"),
            (900, "opening"),
            (1100, "opening"),
            (1200, "opening"),
            (1300, "closing\x1b[2J"),
            (9000, "closing\x1b[2J"),
        ] {
            told.extend(lines.news(stage, begun + Duration::from_millis(after)));
        }
        assert_eq!(told, ["opening", "closing\\u{1b}[2J"]);
    }
}
