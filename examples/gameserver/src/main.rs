//! A game server: sixty ticks a second over thousands of entities, with rules made of closures, patched by dropping a file into
//! a folder.
//!
//! `gameserver --patches DIR [--entities N]` prints `ready` and then, for each line `report` on standard input, a line with
//! what happened since the last one. It runs until its input ends.

mod clock;
mod patches;
mod scripts;
mod world;

use clock::Clock;
use scripts::Script;
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use world::World;

struct Args {
    patches: PathBuf,
    entities: u32,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut patches, mut entities) = (None, 5_000);
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--patches" => patches = Some(value.into()),
            "--entities" => entities = value.parse().map_err(|_| format!("{name} needs a number"))?,
            _ => return Err(format!("unknown argument `{name}`; use --patches DIR and --entities N")),
        }
    }
    Ok(Args { patches: patches.ok_or("--patches DIR is missing")?, entities })
}

/// Ticks until the questions end.
fn run(world: &mut World, scripts: &[Script], questions: &Receiver<()>) {
    let mut clock = Clock::start();
    loop {
        clock.wait();
        world.tick(scripts);
        match questions.try_recv() {
            Ok(()) => {
                let (clock, world) = (clock.report(), world.report());
                println!("{clock} {world} patches={}", patches::applied());
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = parse(std::env::args().skip(1))?;
    let (ask, questions) = channel();
    std::thread::spawn(move || {
        let lines = std::io::stdin().lock().lines().map_while(Result::ok);
        lines.filter(|line| line == "report").try_for_each(|_| ask.send(()))
    });
    std::thread::spawn(move || patches::watch(&args.patches));
    let mut world = World::new(args.entities);
    println!("ready");
    run(&mut world, &scripts::all(), &questions);
    Ok(())
}
