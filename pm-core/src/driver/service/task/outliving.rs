//! Processes that have outlived an earlier orchestrator, and those that are to outlive this one.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::super::keep::{self, Left};
use super::super::process::Order;
use super::Task;
use crate::driver::clock;
use crate::face::service::{LeftBehind, Stopped};
use crate::machine::life::{self, Life};
use crate::machine::service::ServiceId;
use crate::machine::supervisor::Input;

impl Task {
    /// Takes over what an earlier orchestrator has left behind of these services. Where something else is to run now, it is started anew.
    pub(super) fn take_over(&mut self, names: &[String]) {
        let (mine, others): (Vec<Left>, Vec<Left>) =
            std::mem::take(&mut self.left).into_iter().partition(|left| names.contains(&left.note.name));
        self.left = others;
        let mut changed = Vec::new();
        for left in mine {
            let is_it =
                |id: &&ServiceId| self.machine.name_of(**id).is_some_and(|(_, replica)| replica == left.note.replica);
            let Some(&id) = self.machine.replicas(&left.note.name).iter().find(is_it) else {
                self.left.push(left);
                continue;
            };
            let Some(member) = self.members.get_mut(&id) else { continue };
            let (pid, lived) = (left.child.pid(), left.lived());
            if let Some((exit, _)) = &left.ended {
                let status = exit.status;
                member.exit = Some(exit.clone());
                member.last_pid = Some(pid);
                self.machine.handle(clock::now(), Input::Life(id, life::Input::EndedMeanwhile { pid, lived, status }));
                left.child.forget();
            } else {
                if left.note.what != keep::what_runs(&member.definition) && !changed.contains(&left.note.name) {
                    changed.push(left.note.name.clone());
                }
                let was_ready = left.note.was_ready;
                self.machine.handle(clock::now(), Input::Life(id, life::Input::Adopted { pid, lived, was_ready }));
                let incarnation = self.machine.life(id).map_or_else(Default::default, Life::incarnation);
                self.live(id, incarnation, Some(left));
            }
            self.carry_out();
        }
        if !changed.is_empty() {
            self.machine.handle(clock::now(), Input::Restart { names: changed });
        }
    }

    pub(super) fn end_left_behind(&mut self, limit: Option<Duration>, answer: oneshot::Sender<Vec<Stopped>>) {
        let mut ending = JoinSet::new();
        for left in std::mem::take(&mut self.left) {
            ending.spawn(left.end(limit));
        }
        tokio::spawn(async move {
            let mut stopped = ending.join_all().await;
            stopped.sort_by(|one, other| one.label.cmp(&other.label));
            let _ = answer.send(stopped);
        });
    }

    /// Leaves the processes of detached services to the next orchestrator. All others are kept no more.
    pub(super) fn leave_detached(&mut self) -> Vec<LeftBehind> {
        let Some(keep) = self.keep.take() else { return Vec::new() };
        let mut left = Vec::new();
        for (id, member) in &self.members {
            let Some(life) = self.machine.life(*id) else { continue };
            // One that is being stopped is to end.
            let is_left = member.definition.is_detached && !self.machine.is_stopping(*id);
            match life.pid() {
                Some(pid) if is_left => {
                    member.order(Order::Leave);
                    left.push(LeftBehind { label: member.label.clone(), pid, lived: life.lived(clock::now()) });
                }
                _ => member.order(Order::Unkeep),
            }
        }
        if left.is_empty() {
            keep.keep_nothing()
        } else {
            keep.close()
        }
        left
    }
}
