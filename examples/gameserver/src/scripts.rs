//! The rules, as a modding layer would register them: closures with settings of their own, called through `dyn`.

use crate::world::Entity;

/// A rule: what happens to an entity in a tick.
pub type Script = Box<dyn Fn(&mut Entity, u64)>;

/// Moves and bounces off the walls of a square.
fn movement(size: f64, dt: f64) -> Script {
    let bounce = move |at: &mut f64, speed: &mut f64| {
        *at += *speed * dt;
        if at.abs() > size {
            *speed = -*speed;
            *at = at.clamp(-size, size);
        }
    };
    Box::new(move |entity, _| {
        bounce(&mut entity.at.0, &mut entity.speed.0);
        bounce(&mut entity.at.1, &mut entity.speed.1);
    })
}

/// Heals everybody every few ticks.
fn regeneration(every: u64, amount: i64) -> Script {
    Box::new(move |entity, tick| {
        if tick.is_multiple_of(every) {
            entity.health += amount;
        }
    })
}

/// Hurts the ones that stand in the lava.
fn lava(radius: f64, damage: i64) -> Script {
    let inside = move |(x, y): (f64, f64)| x.hypot(y) < radius;
    Box::new(move |entity, tick| {
        if inside(entity.at) && (tick + u64::from(entity.id)).is_multiple_of(10) {
            entity.health = (entity.health - damage).max(1);
        }
    })
}

/// All rules, in the order in which they apply.
pub fn all() -> Vec<Script> {
    vec![movement(150.0, 1.0 / 60.0), lava(20.0, 3), regeneration(2, 5)]
}
