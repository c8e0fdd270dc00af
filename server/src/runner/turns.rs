//! Turns: the engine streams of one session, and how long each turn took.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use turnwire_protocol::action::{TurnKey, TurnSummary};
use turnwire_protocol::engine::{EngineFailure, EngineFailureKind, EngineOutput};
use turnwire_protocol::lane::LaneName;

/// Few at a time (16 by default), so that looking at all of them is cheap.
#[derive(Default)]
pub(super) struct Turns {
    turns: Vec<Turn>,
    /// Where the next look begins, so that no turn waits for another that is always ready.
    first: usize,
}

/// From its start until the session says that it ended.
struct Turn {
    key: TurnKey,
    lane: Option<LaneName>,
    /// None once the engine is done or is not wanted any more.
    output: Option<BoxStream<'static, EngineOutput>>,
    /// Asks the engine to end the turn soon.
    wrap_up: CancellationToken,
    timing: Timing,
}

/// When things happened in a turn; empty for one that no engine began.
#[derive(Clone, Copy, Default)]
pub(super) struct Timing {
    began: Option<Instant>,
    first_token: Option<Instant>,
}

impl Turns {
    /// Starts a turn, or the next run of one whose engine is done: a compaction takes several.
    pub(super) fn start(
        &mut self,
        key: TurnKey,
        lane: Option<LaneName>,
        output: BoxStream<'static, EngineOutput>,
        wrap_up: CancellationToken,
    ) {
        if let Some(turn) = self.turns.iter_mut().find(|turn| turn.key == key) {
            turn.output = Some(output);
            turn.wrap_up = wrap_up;
            return;
        }
        self.turns.push(Turn {
            key,
            lane,
            output: Some(output),
            wrap_up,
            timing: Timing {
                began: Some(Instant::now()),
                first_token: None,
            },
        });
    }

    /// Asks the engine to end the turn soon.
    pub(super) fn wrap_up(&self, key: TurnKey) {
        if let Some(turn) = self.turns.iter().find(|turn| turn.key == key) {
            turn.wrap_up.cancel();
        }
    }

    /// Drops the engine's stream, which cancels it.
    pub(super) fn stop(&mut self, key: TurnKey) {
        if let Some(turn) = self.turns.iter_mut().find(|turn| turn.key == key) {
            turn.output = None;
        }
    }

    pub(super) fn end(&mut self, key: TurnKey) -> Timing {
        let at = self.turns.iter().position(|turn| turn.key == key);
        at.map(|at| self.turns.swap_remove(at).timing)
            .unwrap_or_default()
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = (TurnKey, Option<&LaneName>)> {
        let turns = self.turns.iter();
        turns.map(|turn| (turn.key, turn.lane.as_ref()))
    }

    /// The next output of any engine, except those of lanes that are held back. An engine that
    /// ends without saying so has failed.
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        is_held_back: impl Fn(Option<&LaneName>) -> bool,
    ) -> Poll<(TurnKey, EngineOutput)> {
        for step in 0..self.turns.len() {
            let at = (self.first + step) % self.turns.len();
            if is_held_back(self.turns[at].lane.as_ref()) {
                continue;
            }
            if let Poll::Ready(output) = self.turns[at].poll_next(cx) {
                self.first = at + 1;
                return Poll::Ready((self.turns[at].key, output));
            }
        }
        Poll::Pending
    }
}

impl Turn {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<EngineOutput> {
        let Some(stream) = &mut self.output else {
            return Poll::Pending;
        };
        let Poll::Ready(output) = stream.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        let output = output.unwrap_or_else(|| {
            EngineOutput::Failed(EngineFailure {
                kind: EngineFailureKind::Internal,
                message: "The engine stopped in the middle of the turn.".into(),
                param: None,
            })
        });
        match output {
            EngineOutput::Finished { .. } | EngineOutput::Failed(_) => self.output = None,
            EngineOutput::Started | EngineOutput::ItemDone => {}
            _ => {
                self.timing.first_token.get_or_insert_with(Instant::now);
            }
        }
        Poll::Ready(output)
    }
}

impl Timing {
    /// The one line of the log for a turn. It holds nothing of what was said, and of a model that
    /// is not known here not even the name, which may be any text of the client.
    pub(super) fn log(self, summary: &TurnSummary, model_is_known: bool) {
        let Self { began, first_token } = self;
        let first_token = began.zip(first_token).map(|(began, first)| first - began);
        let not_offered = &summary.tools_not_offered;
        tracing::info!(
            target: "turnwire::turn",
            model = model_is_known.then(|| debug(&summary.model)),
            response.id = %summary.id,
            outcome = %summary.outcome,
            tokens.input = summary.usage.input_tokens,
            tokens.cached = summary.usage.cached_tokens,
            tokens.output = summary.usage.output_tokens,
            first_token_ms = first_token.map(milliseconds),
            total_ms = began.map(|began| milliseconds(began.elapsed())),
            turns = summary.turns,
            stored = summary.stored,
            automatic = summary.automatic.then_some(true),
            tools.not_offered = (!not_offered.is_empty()).then(|| display(not_offered)),
            "turn"
        );
    }
}

/// To a hundredth.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}
