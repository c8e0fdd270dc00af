//! Mailbox: events on their way from a socket to the reader of a turn, bounded in bytes.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use crate::event::Event;

/// What an event takes besides its text, about. It bounds the number of small ones.
const OVERHEAD_BYTES: usize = 256;

/// A mailbox for events of this many bytes together, or for one that is larger.
pub(crate) fn mailbox(bytes: usize) -> (Slot, Mailbox) {
    let size = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(size as usize));
    // Bounded by the room that an event takes before it gets in.
    let (sender, events) = mpsc::unbounded_channel();
    let slot = Slot {
        size,
        room: Arc::clone(&room),
        events: sender,
    };
    (slot, Mailbox { size, room, events })
}

/// Where events are put in.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    size: u32,
    room: Arc<Semaphore>,
    events: mpsc::UnboundedSender<Event>,
}

/// Where events are taken out.
#[derive(Debug)]
pub(crate) struct Mailbox {
    size: u32,
    room: Arc<Semaphore>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Slot {
    /// Puts an event in, or gives it back if there is no room. Where nobody will take it out, it
    /// is dropped.
    pub(crate) fn put(&self, event: Event) -> Result<(), Event> {
        match self.room.try_acquire_many(cost(&event, self.size)) {
            Ok(taken) => taken.forget(),
            Err(_) if self.is_abandoned() => return Ok(()),
            Err(_) => return Err(event),
        }
        // It fails only where nobody will take it out.
        let _ = self.events.send(event);
        Ok(())
    }

    /// Ready when there is room for this event, or nobody will take it out.
    pub(crate) async fn has_room(&self, event: &Event) {
        let _ = self.room.acquire_many(cost(event, self.size)).await;
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.room.is_closed()
    }
}

impl Mailbox {
    /// The next event; none when there will be no other. Nothing is lost if the future is
    /// dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await?;
        self.room.add_permits(cost(&event, self.size) as usize);
        Some(event)
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.room.close();
    }
}

fn cost(event: &Event, size: u32) -> u32 {
    let bytes = event.json.len().saturating_add(OVERHEAD_BYTES);
    u32::try_from(bytes).map_or(size, |bytes| bytes.min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> Event {
        Event {
            name: String::new(),
            lane: None,
            json: vec![b' '; bytes].into(),
        }
    }

    #[tokio::test]
    async fn what_is_in_a_mailbox_is_bounded_in_bytes_and_in_number() {
        let (slot, mut mailbox) = mailbox(10 * OVERHEAD_BYTES);
        for _ in 0..10 {
            slot.put(event(0)).expect("room for an event");
        }
        let refused = slot.put(event(0)).expect_err("no room");
        mailbox.next().await;
        slot.has_room(&refused).await;
        slot.put(refused).expect("room for an event");
        for _ in 0..10 {
            mailbox.next().await;
        }
        // One that is larger than the mailbox is taken by itself.
        slot.put(event(1 << 20)).expect("room for a large event");
        slot.put(event(0)).expect_err("no room beside it");
    }

    #[tokio::test]
    async fn a_mailbox_that_was_abandoned_takes_everything_and_keeps_nothing() {
        let (slot, mailbox) = mailbox(1);
        slot.put(event(0)).expect("room for an event");
        let refused = slot.put(event(0)).expect_err("no room");
        drop(mailbox);
        slot.has_room(&refused).await;
        slot.put(refused).expect("nobody minds");
        assert!(slot.is_abandoned());
    }
}
