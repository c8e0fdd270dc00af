//! Operations: whatever is done, in whatever order, a durable store answers as the one in memory.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use tokio::runtime::Runtime;
use turnwire_protocol::chain::Chain;
use turnwire_protocol::id::{ConversationId, ResponseId};
use turnwire_protocol::stored::{ConversationStep, Status};

use super::story::{OWNER, content, link, response};
use super::{Conversation, MemoryStore, Storage, Store};

/// Numbers choose among what is there, and come around at the end.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    /// A link behind another one, or the first of a chain, that is not stored.
    Link {
        parent: Option<usize>,
    },
    /// A link, maybe one that is stored already, becomes a response.
    Save {
        link: usize,
        status: Status,
        conversation: Option<usize>,
        is_late: bool,
    },
    Delete {
        link: usize,
    },
    CreateConversation {
        link: Option<usize>,
    },
    Advance {
        conversation: usize,
        is_late: bool,
        to: Option<usize>,
    },
    Update {
        conversation: usize,
    },
    DeleteConversation {
        conversation: usize,
    },
    /// What is in memory is lost, and what was under way has failed.
    Reopen,
}

/// Both stores, and everything that was ever made.
struct Both<O> {
    memory: Storage,
    open: O,
    durable: Option<Storage>,
    links: Vec<Chain>,
    conversations: Vec<ConversationId>,
}

/// A store that is opened anew with what is in it, and fails then what is under way.
pub(super) fn agree_with_memory(operations: Vec<Operation>, open: impl Fn() -> Store) {
    Runtime::new().unwrap().block_on(async {
        let mut both = Both {
            memory: Store::Memory(MemoryStore::new(u64::MAX)).into(),
            durable: Some(open().into()),
            open,
            links: Vec::new(),
            conversations: Vec::new(),
        };
        let count = operations.len();
        for (number, operation) in operations.into_iter().enumerate() {
            both.apply(number, operation).await;
        }
        both.compare().await;
        both.apply(count, Operation::Reopen).await;
        both.compare().await;
    });
}

/// To be tried in any order.
pub(super) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..40)
}

fn operation() -> impl Strategy<Value = Operation> {
    let any_index = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let maybe = move || prop::option::weighted(0.8, any_index());
    prop_oneof![
        6 => maybe().prop_map(|parent| Operation::Link { parent }),
        8 => (
            any_index(),
            prop::sample::select(&Status::ALL[..]),
            prop::option::weighted(0.3, any_index()),
            prop::bool::weighted(0.2),
        )
            .prop_map(|(link, status, conversation, is_late)| Operation::Save {
                link,
                status,
                conversation,
                is_late,
            }),
        4 => any_index().prop_map(|link| Operation::Delete { link }),
        2 => maybe().prop_map(|link| Operation::CreateConversation { link }),
        2 => (any_index(), prop::bool::weighted(0.2), maybe()).prop_map(
            |(conversation, is_late, to)| Operation::Advance { conversation, is_late, to }
        ),
        1 => any_index().prop_map(|conversation| Operation::Update { conversation }),
        2 => any_index().prop_map(|conversation| Operation::DeleteConversation { conversation }),
        1 => Just(Operation::Reopen),
    ]
}

impl<O: Fn() -> Store> Both<O> {
    fn link(&self, number: usize) -> Option<&Chain> {
        let count = self.links.len();
        (count > 0).then(|| &self.links[number % count])
    }

    fn conversation(&self, number: usize) -> Option<&ConversationId> {
        let count = self.conversations.len();
        (count > 0).then(|| &self.conversations[number % count])
    }

    /// What a conversation ends with, as far as somebody knows who may be late.
    async fn end_of(&self, id: &ConversationId, is_late: bool) -> Option<ResponseId> {
        let found = self.memory.reader.conversation(OWNER, id).await.unwrap();
        let end = found?.chain?;
        let end = if is_late { end.parent()? } else { &end };
        Some(end.id().clone())
    }

    fn stores(&self) -> [&Storage; 2] {
        [&self.memory, self.durable.as_ref().expect("it is open")]
    }

    async fn apply(&mut self, number: usize, operation: Operation) {
        match operation {
            Operation::Link { parent } => {
                let parent = parent.and_then(|parent| self.link(parent)).cloned();
                self.links
                    .push(link(parent.as_ref(), &format!("resp_{number}")));
            }
            Operation::Save {
                link,
                status,
                conversation,
                is_late,
            } => {
                let Some(chain) = self.link(link) else { return };
                // A conversation goes on with what is done.
                let conversation = conversation.filter(|_| status.is_final());
                let conversation = conversation.and_then(|it| self.conversation(it)).cloned();
                let mut record = response(status, chain);
                if let Some(id) = conversation {
                    let from = self.end_of(&id, is_late).await;
                    record.conversation = Some(ConversationStep { id, from });
                }
                let [memory, durable] = self
                    .stores()
                    .map(|store| store.writer.save(OWNER, record.clone()));
                assert_eq!(memory.await, durable.await);
            }
            Operation::Delete { link } => {
                let Some(chain) = self.link(link) else { return };
                let [memory, durable] = self
                    .stores()
                    .map(|store| store.writer.delete(OWNER, chain.id()));
                assert_eq!(memory.await, durable.await);
            }
            Operation::CreateConversation { link } => {
                let id = ConversationId::from(format!("conv_{number}").as_str());
                let conversation = Conversation {
                    id: id.clone(),
                    created_at: number as u64,
                    metadata: Bytes::from_static(b"{}"),
                    chain: link.and_then(|link| self.link(link)).cloned(),
                };
                for store in self.stores() {
                    store
                        .writer
                        .create_conversation(OWNER, conversation.clone())
                        .await
                        .unwrap();
                }
                self.conversations.push(id);
            }
            Operation::Advance {
                conversation,
                is_late,
                to,
            } => {
                let Some(id) = self.conversation(conversation) else {
                    return;
                };
                let from = self.end_of(id, is_late).await;
                let to = to.and_then(|to| self.link(to)).cloned();
                let [memory, durable] = self.stores().map(|store| {
                    let writer = &store.writer;
                    writer.advance_conversation(OWNER, id, from.as_ref(), to.clone())
                });
                assert_eq!(memory.await, durable.await);
            }
            Operation::Update { conversation } => {
                let Some(id) = self.conversation(conversation) else {
                    return;
                };
                let metadata = Bytes::from(format!(r#"{{"number":"{number}"}}"#));
                let [memory, durable] = self.stores().map(|store| {
                    store
                        .writer
                        .update_conversation(OWNER, id, metadata.clone())
                });
                assert_eq!(memory.await, durable.await);
            }
            Operation::DeleteConversation { conversation } => {
                let Some(id) = self.conversation(conversation) else {
                    return;
                };
                let [memory, durable] = self
                    .stores()
                    .map(|store| store.writer.delete_conversation(OWNER, id));
                assert_eq!(memory.await, durable.await);
            }
            Operation::Reopen => {
                self.durable = None;
                self.durable = Some((self.open)().into());
                for link in &self.links {
                    let id = link.id();
                    let Some(shown) = self.memory.reader.response(OWNER, id).await.unwrap() else {
                        continue;
                    };
                    if shown.status.is_final() {
                        continue;
                    }
                    let chain = self.memory.reader.chain(OWNER, id).await.unwrap().unwrap();
                    let failed = response(Status::Failed, &chain);
                    self.memory.writer.save(OWNER, failed).await.unwrap();
                }
            }
        }
    }

    /// Asks both for everything.
    async fn compare(&self) {
        for link in &self.links {
            let id = link.id();
            let [memory, durable] = self.stores().map(|store| store.tell(id));
            assert_eq!(memory.await, durable.await, "{id}");
        }
        for id in &self.conversations {
            let [memory, durable] = self.stores().map(|store| async {
                let found = store.reader.conversation(OWNER, id).await.unwrap();
                found.map(|it| (it.created_at, it.metadata, it.chain.as_ref().map(content)))
            });
            assert_eq!(memory.await, durable.await, "{id:?}");
        }
    }
}

impl Storage {
    /// All that there is to say of a response.
    async fn tell(&self, id: &ResponseId) -> impl PartialEq + std::fmt::Debug + use<> {
        let loaded = self.reader.load(OWNER, id).await.unwrap();
        let chain = self.reader.chain(OWNER, id).await.unwrap();
        let shown = self.reader.response(OWNER, id).await.unwrap();
        let number = id.as_str().trim_start_matches("resp_");
        let names = [format!("said_{id}"), format!("msg_{number}_0")];
        let items = self.finds(&names.each_ref().map(String::as_str)).await;
        (
            loaded.as_ref().map(content),
            chain.as_ref().map(content),
            shown.map(|it| {
                let json: Value = serde_json::from_slice(&it.json).unwrap();
                (it.status, json["status"].clone(), json["output"].clone())
            }),
            items,
        )
    }
}
