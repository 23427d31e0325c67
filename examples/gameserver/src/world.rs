//! The state: entities that live from the start to the end of the server.

use crate::scripts::Script;
use std::fmt;

/// Something in the world.
pub struct Entity {
    pub id: u32,
    pub at: (f64, f64),
    pub speed: (f64, f64),
    pub health: i64,
    pub most_health: i64,
    /// Ticks that it has lived through: shows that none was lost and none was made anew.
    pub age: u64,
}

/// All entities.
pub struct World {
    tick: u64,
    #[expect(clippy::vec_box, reason = "an entity keeps its place in memory, whatever comes or goes")]
    entities: Vec<Box<Entity>>,
}

/// What the world looks like.
pub struct Report {
    entities: usize,
    /// Entities that have lived through every tick.
    whole: usize,
    /// Entities with more health than they can have.
    overfull: usize,
}

impl World {
    pub fn new(count: u32) -> Self {
        let entity = |id: u32| {
            let angle = f64::from(id);
            Box::new(Entity {
                id,
                at: (angle.sin() * 100.0, angle.cos() * 100.0),
                speed: (angle.cos(), angle.sin()),
                health: 50,
                most_health: 100 + i64::from(id % 50),
                age: 0,
            })
        };
        Self { tick: 0, entities: (0..count).map(entity).collect() }
    }

    /// Runs every script on every entity.
    pub fn tick(&mut self, scripts: &[Script]) {
        self.tick += 1;
        for entity in &mut self.entities {
            for script in scripts {
                script(entity, self.tick);
            }
            entity.age += 1;
        }
    }

    pub fn report(&self) -> Report {
        let count = |wanted: &dyn Fn(&Entity) -> bool| self.entities.iter().filter(|e| wanted(e)).count();
        Report {
            entities: self.entities.len(),
            whole: count(&|entity| entity.age == self.tick),
            overfull: count(&|entity| entity.health > entity.most_health),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entities={} whole={} overfull={}", self.entities, self.whole, self.overfull)
    }
}
