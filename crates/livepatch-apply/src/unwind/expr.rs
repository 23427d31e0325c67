//! DWARF expressions in unwind rules.

use super::table::CfiReader;
use super::{Memory, Registers, Unverified};
use gimli::{EvaluationResult, Expression, Location, Value};
use livepatch_patch::RunAddr;

const ENCODING: gimli::Encoding =
    gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };

/// No unwind expression of a real table comes near this; a loop in a hostile one ends here.
const MAX_STEPS: u32 = 1000;

/// Evaluates an expression to a number. `initial` is pushed first (the canonical frame address, for register
/// rules).
pub(super) fn evaluate(
    expression: &Expression<CfiReader>,
    registers: &Registers,
    memory: &mut dyn Memory,
    initial: Option<u64>,
) -> Result<u64, Unverified> {
    let bad = |what: String| Unverified::BadCfi { pc: RunAddr(registers.0[16].unwrap_or(0)), what };
    let mut evaluation = expression.clone().evaluation(ENCODING);
    evaluation.set_max_iterations(MAX_STEPS);
    if let Some(value) = initial {
        evaluation.set_initial_value(value);
    }
    let mut state = evaluation.evaluate();
    loop {
        state = match state.map_err(|error| bad(error.to_string()))? {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers.get(usize::from(register.0))?;
                evaluation.resume_with_register(Value::Generic(value))
            }
            EvaluationResult::RequiresMemory { address, size, space: None, .. } if size <= 8 => {
                let mut buf = [0; 8];
                let wanted = &mut buf[..usize::from(size)];
                if !memory.read(RunAddr(address), wanted) {
                    return Err(Unverified::Unreadable(RunAddr(address)));
                }
                evaluation.resume_with_memory(Value::Generic(u64::from_le_bytes(buf)))
            }
            other => return Err(bad(format!("expression needs {other:?}"))),
        };
    }
    match evaluation.result().as_slice() {
        [piece] => match piece.location {
            Location::Address { address } => Ok(address),
            Location::Value { value: Value::Generic(value) } => Ok(value),
            _ => Err(bad("expression gives no address".into())),
        },
        _ => Err(bad("expression gives several pieces".into())),
    }
}
