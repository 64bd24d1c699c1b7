//! Orders and needs between things that are started and stopped together.

use thiserror::Error;

/// Things, numbered from 0, and which of them need which others. Built once; from then on it has no cycle.
///
/// ```
/// use pm_core::machine::graph::Graph;
///
/// let graph = Graph::new(&["db", "cache", "web"], &[("web", "db"), ("web", "cache")]).unwrap();
/// assert_eq!(graph.order(), [0, 1, 2]);
/// assert_eq!(graph.dependents(0), [2]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// What each one needs, in the order in which the needs were named.
    needs: Vec<Vec<usize>>,
    order: Vec<usize>,
}

/// Names and needs that make no graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadGraph {
    /// A name stands twice.
    #[error("{0:?} is named twice")]
    Twice(String),
    /// A need names nothing that exists.
    #[error("{from:?} needs {missing:?}, which does not exist")]
    Missing {
        /// What has the need.
        from: String,
        /// What it names.
        missing: String,
    },
    /// Needs that lead back to where they began.
    #[error("a cycle of needs: {}", .0.join(" → "))]
    Cycle(Vec<String>),
}

impl Graph {
    /// A graph of these names, where each pair says that the first needs the second.
    ///
    /// # Errors
    /// [`BadGraph`] for a name that stands twice, a need of something that does not exist, and a cycle, with its path.
    pub fn new(names: &[&str], needs: &[(&str, &str)]) -> Result<Self, BadGraph> {
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                return Err(BadGraph::Twice(name.to_string()));
            }
        }
        let find = |name: &str| names.iter().position(|known| *known == name);
        let mut edges = vec![Vec::new(); names.len()];
        for &(from, to) in needs {
            let missing = |missing: &str| BadGraph::Missing { from: from.to_string(), missing: missing.to_string() };
            let (from, to) = (find(from).ok_or_else(|| missing(from))?, find(to).ok_or_else(|| missing(to))?);
            if !edges[from].contains(&to) {
                edges[from].push(to);
            }
        }
        let order = sort(&edges)
            .map_err(|cycle| BadGraph::Cycle(cycle.into_iter().map(|at| names[at].to_string()).collect()))?;
        Ok(Graph { needs: edges, order })
    }

    /// All, each after everything that it needs; otherwise as they were named. They stop in the reverse of it.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// What this one needs itself.
    pub fn needs(&self, of: usize) -> &[usize] {
        &self.needs[of]
    }

    /// Everything that needs this one, by however many steps, in starting order.
    pub fn dependents(&self, of: usize) -> Vec<usize> {
        let mut affected = vec![false; self.needs.len()];
        affected[of] = true;
        for &at in &self.order {
            affected[at] |= self.needs[at].iter().any(|&need| affected[need]);
        }
        self.order.iter().copied().filter(|&at| at != of && affected[at]).collect()
    }
}

/// A depth-first walk in naming order. The path is explicit, so that a long chain of needs costs no stack.
fn sort(needs: &[Vec<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Sorted,
    }
    let mut marks = vec![Mark::New; needs.len()];
    let mut order = Vec::with_capacity(needs.len());
    for root in 0..needs.len() {
        let mut path: Vec<(usize, usize)> = Vec::new();
        if marks[root] == Mark::New {
            marks[root] = Mark::OnPath;
            path.push((root, 0));
        }
        while let Some((at, next)) = path.last_mut() {
            let Some(&need) = needs[*at].get(*next) else {
                marks[*at] = Mark::Sorted;
                order.push(*at);
                path.pop();
                continue;
            };
            *next += 1;
            match marks[need] {
                Mark::Sorted => {}
                Mark::New => {
                    marks[need] = Mark::OnPath;
                    path.push((need, 0));
                }
                Mark::OnPath => {
                    let begin = path.iter().position(|&(on, _)| on == need).unwrap_or(0);
                    return Err(path[begin..].iter().map(|&(on, _)| on).chain([need]).collect());
                }
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::super::budget::SplitMix;
    use super::*;

    #[test]
    fn errors_name_the_path() {
        let cycle = Graph::new(&["a", "b", "c", "d"], &[("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")]);
        assert_eq!(cycle.unwrap_err().to_string(), "a cycle of needs: b → c → d → b");
        assert_eq!(Graph::new(&["a"], &[("a", "a")]).unwrap_err().to_string(), "a cycle of needs: a → a");
        let missing = Graph::new(&["web"], &[("web", "db")]).unwrap_err();
        assert_eq!(missing.to_string(), r#""web" needs "db", which does not exist"#);
        assert_eq!(Graph::new(&["a", "a"], &[]), Err(BadGraph::Twice("a".into())));
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_needs_no_stack() {
        let needs: Vec<Vec<usize>> =
            (0..100_000).map(|at| if at + 1 < 100_000 { vec![at + 1] } else { vec![] }).collect();
        assert_eq!(sort(&needs).unwrap()[0], 99_999);
    }

    /// Over random graphs: an order exists exactly where no one reaches itself, and it holds; dependents are those that
    /// reach the thing.
    #[test]
    fn orders_and_dependents_agree_with_reachability() {
        for seed in 0..1000 {
            let mut random = SplitMix(seed);
            let count = 1 + random.below(8) as usize;
            let names: Vec<String> = (0..count).map(|at| format!("n{at}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let pairs: Vec<(usize, usize)> = (0..random.below(12))
                .map(|_| (random.below(count as u64) as usize, random.below(count as u64) as usize))
                .collect();
            let mut reaches = vec![vec![false; count]; count];
            for &(from, to) in &pairs {
                reaches[from][to] = true;
            }
            for via in 0..count {
                for from in 0..count {
                    for to in 0..count {
                        reaches[from][to] |= reaches[from][via] && reaches[via][to];
                    }
                }
            }
            let named: Vec<_> = pairs.iter().map(|&(from, to)| (names[from], names[to])).collect();
            let Ok(graph) = Graph::new(&names, &named) else {
                assert!((0..count).any(|at| reaches[at][at]), "seed {seed}");
                continue;
            };
            assert!((0..count).all(|at| !reaches[at][at]), "seed {seed}");
            let place = |of| graph.order().iter().position(|&at| at == of).unwrap();
            assert!(pairs.iter().all(|&(from, to)| place(from) > place(to)), "seed {seed}");
            for of in graph.order() {
                let mut dependents = graph.dependents(*of);
                dependents.sort_unstable();
                let expected: Vec<_> = (0..count).filter(|&at| reaches[at][*of]).collect();
                assert_eq!(dependents, expected, "seed {seed}");
            }
        }
    }
}
