//! What a rebuild overwrites, and with what: where the one may be the better, or none of the volume's at all, the operator has to name it.
//!
//! What replicas say of themselves decides; one that belongs to another volume says nothing wrong, and has perhaps seen more writes than any of the right ones.

use paddock_storage::longhorn::{Found, Inside, ReplicaAddress, Standing};

use super::VolumeFailure;
use super::open::describe;

/// Which replicas are rebuilt, and from which.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Those that have everything, as far as is known.
    sources: Vec<&'a Found>,
    /// The others, in the order in which they were named.
    lost: Vec<&'a Found>,
    anew: &'a [ReplicaAddress],
}

impl<'a> Plan<'a> {
    /// What is to be done with what was found. `anew` are rebuilt, whatever they have.
    ///
    /// # Errors
    /// When nothing is there to rebuild from, or it may be worse than what it would replace.
    pub fn new(found: &'a [Found], anew: &'a [ReplicaAddress]) -> Result<Self, VolumeFailure> {
        let is_source = |found: &&Found| {
            let has_all = matches!(found.standing, Standing::Complete | Standing::Unclean);
            has_all && !anew.contains(&found.address)
        };
        let (sources, lost) = found.iter().partition(is_source);
        let this = Self {
            sources,
            lost,
            anew,
        };
        if this.sources.is_empty() {
            // An engine that is given an incomplete one alone takes that.
            let lines: Vec<String> = found.iter().map(describe).collect();
            return Err(VolumeFailure::Found(format!(
                "no replica is left that has everything, and could be rebuilt from\n{}",
                lines.join("\n")
            )));
        }
        this.check()?;
        Ok(this)
    }

    /// The same, once an engine has looked at the sources, and has left some of them.
    ///
    /// # Errors
    /// When what it took may be worse than what it left.
    pub fn without(mut self, left: &[ReplicaAddress]) -> Result<Self, VolumeFailure> {
        let is_left = |found: &&Found| left.contains(&found.address);
        let (left, sources) = self.sources.into_iter().partition(is_left);
        self.sources = sources;
        self.lost.extend::<Vec<_>>(left);
        self.check()?;
        Ok(self)
    }

    /// Those that are rebuilt.
    pub fn lost(&self) -> &[&'a Found] {
        &self.lost
    }

    /// Those that they are rebuilt from.
    pub fn sources(&self) -> &[&'a Found] {
        &self.sources
    }

    fn check(&self) -> Result<(), VolumeFailure> {
        self.ensure_closed()?;
        // Whoever names them knows; and the others hold nothing, or say themselves that they lack something.
        let is_judged = |found: &&&Found| {
            let judged = matches!(
                found.standing,
                Standing::Complete | Standing::Unclean | Standing::Stale
            );
            judged && !self.anew.contains(&found.address)
        };
        let judged: Vec<&Found> = self.lost.iter().filter(is_judged).copied().collect();
        for lost in &judged {
            if let Some(problem) = self.stranger(lost) {
                return Err(refused(
                    &problem,
                    std::slice::from_ref(lost),
                    "is it one of the volume's?",
                ));
            }
        }
        if judged.len() > self.sources.len() {
            let problem = format!(
                "only {} would be kept, and more would be overwritten",
                names(&self.sources)
            );
            return Err(refused(&problem, &judged, "are all of them the volume's?"));
        }
        Ok(())
    }

    /// Refuses to overwrite one that was closed with those of which none was.
    fn ensure_closed(&self) -> Result<(), VolumeFailure> {
        let is_closed = |found: &&&Found| found.standing == Standing::Complete;
        let closed: Vec<&Found> = self.lost.iter().filter(is_closed).copied().collect();
        if closed.is_empty() || self.sources.iter().any(|found| is_closed(&found)) {
            return Ok(());
        }
        let (sources, closed) = (names(&self.sources), names(&closed));
        Err(VolumeFailure::Found(format!(
            "{sources}: not closed when last used, and would be all that is left: {closed} would be overwritten, and may have what they miss\n  \
             if {sources} is known to have everything, name that alone to paddock volume check --repair first"
        )))
    }

    /// What says that one is none of the volume's.
    fn stranger(&self, lost: &Found) -> Option<String> {
        let source = self
            .sources
            .iter()
            .find(|source| source.standing == Standing::Complete)
            .or(self.sources.first())?;
        let (one, other) = (&lost.address, &source.address);
        match (lost.size, source.size) {
            (Some(size), Some(right)) if size != right => {
                return Some(format!("{one} has {size} bytes, and {other} {right}"));
            }
            _ => {}
        }
        let (ours, theirs) = (lost.inside.as_ref()?, source.inside.as_ref()?);
        are_strangers(ours, theirs)
            .then(|| format!("{one} and {other} have snapshots, and none in common"))
    }
}

fn are_strangers(one: &Inside, other: &Inside) -> bool {
    let has = |name: &String| other.chain.contains(name);
    !one.chain.is_empty() && !other.chain.is_empty() && !one.chain.iter().any(has)
}

fn names(found: &[&Found]) -> String {
    let names: Vec<String> = found.iter().map(|f| f.address.to_string()).collect();
    names.join(",")
}

fn refused(problem: &str, overwritten: &[&Found], question: &str) -> VolumeFailure {
    let lines: Vec<String> = overwritten.iter().map(|found| describe(found)).collect();
    VolumeFailure::Found(format!(
        "{problem}; {question}\n{}\n  if what they have may go, say so: --anew {}",
        lines.join("\n"),
        names(overwritten)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn found(address: &str, standing: Standing) -> Found {
        Found {
            address: address.parse().unwrap(),
            standing,
            problem: Some("it misses something".to_owned()),
            size: Some(SIZE),
            inside: None,
        }
    }

    fn with_chain(mut found: Found, chain: &[&str]) -> Found {
        found.inside = Some(Inside {
            head: "volume-head-001.img".to_owned(),
            head_bytes: 0,
            chain: chain.iter().map(|&name| name.to_owned()).collect(),
            snapshots: Vec::new(),
            revision_counter: None,
        });
        found
    }

    fn addresses(found: &[&Found]) -> Vec<String> {
        found.iter().map(|f| f.address.to_string()).collect()
    }

    /// What it says, or of which it is done.
    fn plan(found: &[Found], anew: &[&str]) -> Result<Vec<String>, String> {
        let anew: Vec<ReplicaAddress> = anew.iter().map(|text| text.parse().unwrap()).collect();
        let plan = Plan::new(found, &anew).map_err(|error| error.to_string())?;
        Ok(addresses(plan.lost()))
    }

    #[track_caller]
    fn refuses(found: &[Found], anew: &[&str], text: &str) {
        let error = plan(found, anew).unwrap_err();
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn what_is_rebuilt_from_has_everything() {
        for standing in [
            Standing::Incomplete,
            Standing::Stale,
            Standing::Empty,
            Standing::Broken,
            Standing::Unreachable,
        ] {
            let set = [found("a:1", Standing::Complete), found("b:1", standing)];
            assert_eq!(plan(&set, &[]).unwrap(), ["b:1"], "{standing:?}");
            refuses(&set, &["a:1"], "no replica is left");
        }
    }

    #[test]
    fn one_that_was_closed_is_not_overwritten_with_one_that_was_not() {
        let set = ["a:1", "b:1", "c:1"];
        let standings = [Standing::Unclean, Standing::Complete, Standing::Complete];
        let set: Vec<Found> = set
            .into_iter()
            .zip(standings)
            .map(|(address, standing)| found(address, standing))
            .collect();
        refuses(&set[..2], &["b:1"], "b:1 would be overwritten");
        refuses(&set, &["b:1", "c:1"], "b:1,c:1 would be overwritten");
        // One that was closed is left to rebuild from.
        assert_eq!(plan(&set, &["b:1"]).unwrap(), ["b:1"]);
        assert_eq!(plan(&set, &["a:1"]).unwrap(), ["a:1"]);
        // The one that was not closed has seen more writes, and its engine took it alone.
        let left = [set[1].address.clone()];
        let error = Plan::new(&set[..2], &[]).unwrap().without(&left);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("check --repair first"), "{error}");
        // As it should be: it misses what the other has.
        let left = [set[0].address.clone()];
        let plan = Plan::new(&set[..2], &[]).unwrap().without(&left).unwrap();
        assert_eq!(addresses(plan.lost()), ["a:1"]);
        assert_eq!(addresses(plan.sources()), ["b:1"]);
    }

    #[test]
    fn more_are_overwritten_than_kept_only_by_name() {
        let set = [
            found("a:1", Standing::Stale),
            found("b:1", Standing::Stale),
            found("c:1", Standing::Complete),
        ];
        refuses(&set, &[], "--anew a:1,b:1");
        assert_eq!(plan(&set, &["a:1"]).unwrap(), ["a:1", "b:1"]);
        assert_eq!(plan(&set, &["a:1", "b:1"]).unwrap(), ["a:1", "b:1"]);
        // What has nothing is not overwritten.
        let set = [
            found("a:1", Standing::Empty),
            found("b:1", Standing::Incomplete),
            found("c:1", Standing::Complete),
        ];
        assert_eq!(plan(&set, &[]).unwrap(), ["a:1", "b:1"]);
    }

    #[test]
    fn what_seems_to_be_another_volume_is_overwritten_only_by_name() {
        let source = with_chain(found("a:1", Standing::Complete), &["new", "old"]);
        let stale = |chain: &[&str]| with_chain(found("b:1", Standing::Stale), chain);
        let with = |stale: Found| [source.clone(), stale];
        refuses(&with(stale(&["other"])), &[], "none in common");
        assert!(plan(&with(stale(&["other"])), &["b:1"]).is_ok());
        assert!(plan(&with(stale(&["old"])), &[]).is_ok());
        assert!(plan(&with(stale(&[])), &[]).is_ok());
        let mut small = stale(&["old"]);
        small.size = Some(SIZE / 2);
        refuses(&with(small.clone()), &[], "b:1 has 524288 bytes");
        assert!(plan(&with(small), &["b:1"]).is_ok());
    }
}
