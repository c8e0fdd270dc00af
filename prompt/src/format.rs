//! ChatFormat: one model's way of writing a conversation.

use turnwire_protocol::engine::TurnRequest;
use turnwire_protocol::item::Item;
use turnwire_protocol::tool::Tools;

use crate::{Before, Plan, Refusal, SpecialTokens, Text};

#[derive(Debug)]
pub struct ChatFormat {}

#[derive(Debug, thiserror::Error)]
#[error("chat template: {0}")]
pub struct TemplateError(String);

impl ChatFormat {
    /// `template` is the model's own Jinja chat template; without one, ChatML is assumed.
    pub fn new(_template: Option<&str>, _tokens: SpecialTokens) -> Result<Self, TemplateError> {
        unimplemented!()
    }

    /// The start of a prompt: BOS, instructions, tools.
    pub fn head(&self, _instructions: Option<&str>, _tools: &Tools) -> Result<Text, Refusal> {
        unimplemented!()
    }

    /// What a turn appends: the close of what stands before, `items`, and, if the model is to
    /// go on (`plan`), the generation prompt and the plan's opening.
    pub fn segment(
        &self,
        _before: Before,
        _items: &[&Item],
        _plan: Option<&Plan>,
    ) -> Result<Text, Refusal> {
        unimplemented!()
    }

    /// Opening, grammar and parser for a turn's choice of tools and output format.
    pub fn plan(&self, _request: &TurnRequest) -> Result<Plan, Refusal> {
        unimplemented!()
    }
}
