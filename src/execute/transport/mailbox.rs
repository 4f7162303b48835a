//! Matches sends with receives, whichever comes first: by sender and tag; only equal ones by order of arrival.

use crate::ids::Rank;

/// What makes a message different from all others that one rank may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The sender.
    pub from: Rank,
    /// Its tag.
    pub tag: u64,
}

/// The sends and receives of one receiving rank that wait for their other half.
#[derive(Debug)]
pub struct Mailbox<S, R> {
    sends: Vec<(Key, S)>,
    receives: Vec<(Key, R)>,
}

impl<S, R> Default for Mailbox<S, R> {
    fn default() -> Mailbox<S, R> {
        Mailbox { sends: Vec::new(), receives: Vec::new() }
    }
}

impl<S, R> Mailbox<S, R> {
    /// A send comes in: both halves if its receive has been posted, otherwise it is kept.
    pub fn send(&mut self, key: Key, send: S) -> Option<(S, R)> {
        match take(&mut self.receives, key) {
            Some(receive) => Some((send, receive)),
            None => {
                self.sends.push((key, send));
                None
            }
        }
    }

    /// A receive is posted: both halves if its send has come, otherwise it is kept.
    pub fn receive(&mut self, key: Key, receive: R) -> Option<(S, R)> {
        match take(&mut self.sends, key) {
            Some(send) => Some((send, receive)),
            None => {
                self.receives.push((key, receive));
                None
            }
        }
    }

    /// Forgets all sends of one rank.
    pub fn withdraw_sends(&mut self, from: Rank) {
        self.sends.retain(|(key, _)| key.from != from);
    }

    /// Forgets all receives.
    pub fn withdraw_receives(&mut self) {
        self.receives.clear();
    }
}

fn take<T>(list: &mut Vec<(Key, T)>, key: Key) -> Option<T> {
    let at = list.iter().position(|(k, _)| *k == key)?;
    Some(list.remove(at).1)
}
