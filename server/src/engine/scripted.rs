//! The scripted engine: no model, the same answer every time. For tests, benchmarks and demos.
//!
//! What it answers is declared in a [`Script`]. It reads new items only; what must be known of
//! the rest of a chain travels in the state that it leaves on each link.

mod play;
mod sample;
mod script;
mod seen;

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::engine::{EngineOutput, TurnRequest};

use super::{Engine, Model};
use play::Play;

pub use script::{Script, ScriptError};

#[derive(Debug)]
pub struct ScriptedEngine {
    model: Model,
    script: Arc<Script>,
    activity: watch::Sender<Activity>,
}

/// What an engine has done so far. Tests wait for it instead of sleeping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Turns whose stream is alive.
    pub running: usize,
    /// Turns whose stream was dropped before its end.
    pub cancelled: usize,
    /// Outputs that were taken from all streams.
    pub outputs: usize,
}

impl ScriptedEngine {
    /// `created` is in seconds since 1970.
    pub fn new(script: Script, created: u64) -> Self {
        let model = Model {
            name: script.model.as_str().into(),
            created,
            owned_by: "turnwire",
        };
        Self {
            model,
            script: Arc::new(script),
            activity: watch::Sender::default(),
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub fn activity(&self) -> watch::Receiver<Activity> {
        self.activity.subscribe()
    }
}

impl Engine for ScriptedEngine {
    fn models(&self) -> Vec<Model> {
        vec![self.model.clone()]
    }

    fn serves(&self, model: &str) -> bool {
        *self.model.name == *model
    }

    fn start(
        &self,
        request: TurnRequest,
        wrap_up: CancellationToken,
    ) -> BoxStream<'static, EngineOutput> {
        let ticket = Ticket::new(self.activity.clone());
        match Play::new(&self.script, &request, wrap_up) {
            Ok(play) => stream::unfold((play, ticket), async |(mut play, mut ticket)| {
                let output = play.next().await;
                ticket.record(output.as_ref());
                Some((output?, (play, ticket)))
            })
            .boxed(),
            Err(failure) => {
                let mut ticket = ticket;
                let output = EngineOutput::Failed(failure);
                ticket.record(Some(&output));
                stream::iter([output]).boxed()
            }
        }
    }
}

/// Counts one turn in and out.
struct Ticket {
    activity: watch::Sender<Activity>,
    ended: bool,
}

impl Ticket {
    fn new(activity: watch::Sender<Activity>) -> Self {
        activity.send_modify(|activity| activity.running += 1);
        Self {
            activity,
            ended: false,
        }
    }

    fn record(&mut self, output: Option<&EngineOutput>) {
        self.ended = matches!(
            output,
            None | Some(EngineOutput::Finished { .. } | EngineOutput::Failed(_))
        );
        let taken = usize::from(output.is_some());
        self.activity
            .send_modify(|activity| activity.outputs += taken);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.activity.send_modify(|activity| {
            activity.running -= 1;
            activity.cancelled += usize::from(!self.ended);
        });
    }
}
