//! A schedule as text, and back: one line per rank, with the tokens of its ops.
//!
//! The text says no placement and no sizes: they follow from which rank has which stage of which direction, and from
//! the highest micro-batch. So what `to_text` writes is read back as it was, if every stage and the last micro-batch
//! of each direction have an op. Every schedule that passes its check is such a one, unless a direction has no
//! micro-batch.

use super::{Schedule, Work, MICROBATCHES_MAX, PASSES_MAX};
use crate::error::{Error, Result};
use crate::ids::{Direction, Microbatch, Rank, Stage};
use crate::op::{Op, Pass};
use crate::placement::{Placement, RANKS_MAX, STAGES_MAX};

impl Schedule {
    /// Most ops that all orders together may have where they come from outside: an F, an I and a W of each pass.
    pub const OPS_MAX: usize = 3 * PASSES_MAX;

    /// `RANK| TOKEN TOKEN …` for each rank, such as `1| 1F0 2f0 1F1 …`; the last line ends with a newline too.
    pub fn to_text(&self) -> String {
        let width = (self.num_ranks() - 1).to_string().len();
        let mut text = String::new();
        for (rank, order) in self.orders().iter().enumerate() {
            text += &format!("{rank:width$}|");
            for op in order {
                text += &format!(" {op}");
            }
            text.push('\n');
        }
        text
    }

    /// The schedule that such a text is of; [`Schedule::check`] says whether it can run. Any number of blanks may stand
    /// between tokens; empty lines and the last newline do not matter. Without a backward it is of
    /// [`Work::ForwardOnly`]. Time: proportional to the length of the text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument), with line and column: what is no rank or no
    /// token; ranks out of order; a stage on two ranks, or without any op; directions with other numbers of stages, or
    /// whose micro-batches are not as many (direction 0 may have one more); more than [`Schedule::OPS_MAX`] ops, or
    /// other sizes above their limits.
    pub fn from_text(name: impl Into<String>, text: &str) -> Result<Schedule> {
        let mut reader = Reader::default();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            reader.read_line(i + 1, line)?;
        }
        reader.schedule(name.into())
    }
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    orders: Vec<Vec<Op>>,
    num_ops: usize,
    has_backward: bool,
    /// The rank of each stage of each direction, where one is known.
    rank_of: [Vec<Option<Rank>>; 2],
    /// The highest micro-batch of each direction, and one more.
    microbatches: [usize; 2],
}

impl Reader {
    fn read_line(&mut self, number: usize, line: &str) -> Result<()> {
        let rank = self.orders.len();
        let Some((before, tokens)) = line.split_once('|') else {
            return Err(refused(number, line, line, "must be a rank and its ops, such as 0| 0F0 0B0"));
        };
        if before.trim() != rank.to_string() || rank >= RANKS_MAX as usize {
            let range = match rank < RANKS_MAX as usize {
                true => format!("must be {rank}: ranks stand in order"),
                false => format!("must not be there: there are at most {RANKS_MAX} ranks"),
            };
            return Err(refused(number, line, before, range));
        }
        let mut order = Vec::new();
        for token in tokens.split_whitespace() {
            let op = parse_op(token).map_err(|range| refused(number, line, token, range))?;
            self.add(op, Rank::from_index(rank)).map_err(|range| refused(number, line, token, range))?;
            order.push(op);
        }
        self.orders.push(order);
        Ok(())
    }

    /// Takes over what an op of `rank` says of the placement and the sizes, or says what it must be.
    fn add(&mut self, op: Op, rank: Rank) -> std::result::Result<(), String> {
        self.num_ops += 1;
        if self.num_ops > Schedule::OPS_MAX {
            return Err(format!("must not be there: there are at most {} ops", Schedule::OPS_MAX));
        }
        let backward = op.backward_input().or(op.backward_weight());
        self.has_backward |= backward.is_some();
        for Pass { direction, stage, microbatch } in op.forward().into_iter().chain(backward) {
            let ranks = &mut self.rank_of[direction.index()];
            if ranks.len() <= stage.index() {
                ranks.resize(stage.index() + 1, None);
            }
            let holder = *ranks[stage.index()].get_or_insert(rank);
            if holder != rank {
                return Err(format!(
                    "must be on rank {holder}, which has stage {stage} of direction {direction} above"
                ));
            }
            let microbatches = &mut self.microbatches[direction.index()];
            *microbatches = (*microbatches).max(microbatch.index() + 1);
        }
        Ok(())
    }

    fn schedule(self, name: String) -> Result<Schedule> {
        if self.num_ops == 0 {
            return Err(Error::argument(WHAT, "the number of ops", 0, "must be at least 1"));
        }
        let [down, up] = self.microbatches;
        if up > 0 && down.wrapping_sub(up) > 1 {
            let range = format!("must be as many as in direction 1, {up}, or one more");
            return Err(Error::argument(WHAT, "the number of micro-batches in direction 0", down, range));
        }
        let num_directions = if up > 0 { 2 } else { 1 };
        let mut placement = Vec::with_capacity(num_directions);
        for (direction, ranks) in self.rank_of.iter().take(num_directions).enumerate() {
            if let Some(stage) = ranks.iter().position(Option::is_none) {
                let stages = format!("stage {stage} of direction {direction}");
                return Err(Error::argument(WHAT, stages, "nowhere", "must have an op"));
            }
            placement.push(ranks.iter().copied().flatten().collect());
        }
        let placement = Placement::new(self.orders.len(), &placement)?;
        let work = if self.has_backward { Work::Training } else { Work::ForwardOnly };
        Schedule::new(name, placement, down + up, work, self.orders)
    }
}

/// Who speaks in the errors.
const WHAT: &str = "schedule text";

/// An error about `part` of a line, a slice of it.
fn refused(number: usize, line: &str, part: &str, range: impl std::fmt::Display) -> Error {
    let column = line[..part.as_ptr() as usize - line.as_ptr() as usize].chars().count() + 1;
    let shown: String = part.chars().take(SHOWN_MAX).collect();
    Error::argument(WHAT, format!("line {number}, column {column}"), format!("{shown:?}"), range)
}

/// Characters of a wrong part that an error repeats.
const SHOWN_MAX: usize = 40;

/// The op of a token, or what it must be.
fn parse_op(token: &str) -> std::result::Result<Op, String> {
    const GRAMMAR: &str =
        "must be STAGE KIND MICROBATCH, such as 2F0, of kind F, B, I, W (f, b, i, w in direction 1), \
                           or a pair, such as 2F3&5b1";
    let op = match token.split_once('&') {
        None => match parse_part(token)? {
            Some(('F', pass)) => Some(Op::F(pass)),
            Some(('B', pass)) => Some(Op::B(pass)),
            Some(('I', pass)) => Some(Op::I(pass)),
            Some(('W', pass)) => Some(Op::W(pass)),
            _ => None,
        },
        Some((forward, backward)) => match (parse_part(forward)?, parse_part(backward)?) {
            (Some(('F', forward)), Some(('B', backward))) => Some(Op::FB(forward, backward)),
            _ => None,
        },
    };
    op.ok_or_else(|| GRAMMAR.to_string())
}

/// Kind, as a capital, and pass of `2F0`; `None` if it is none, and a range if a number is outside its own.
fn parse_part(part: &str) -> std::result::Result<Option<(char, Pass)>, String> {
    let Some((at, kind)) = part.char_indices().find(|(_, c)| !c.is_ascii_digit()) else { return Ok(None) };
    let (stage, microbatch) = (&part[..at], &part[at + kind.len_utf8()..]);
    let are_numbers =
        [stage, microbatch].iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if !are_numbers {
        return Ok(None);
    }
    let below = |name: &str, digits: &str, limit: usize| match digits.parse::<usize>() {
        Ok(number) if number < limit => Ok(number),
        _ => Err(format!("must have a {name} of 0 to {}", limit - 1)),
    };
    let stage = below("stage", stage, STAGES_MAX as usize)?;
    let microbatch = below("micro-batch", microbatch, MICROBATCHES_MAX)?;
    let direction = if kind.is_ascii_lowercase() { Direction::Up } else { Direction::Down };
    let (stage, microbatch) = (Stage(stage as u16), Microbatch::from_index(microbatch));
    Ok(Some((kind.to_ascii_uppercase(), Pass { direction, stage, microbatch })))
}
