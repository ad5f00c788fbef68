//! Prints built-in stories: `cargo run -p nextword-data --example stories -- SEED COUNT`.
#![allow(clippy::print_stdout)]

use nextword_data::Stories;

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|text| text.parse().unwrap_or(0));
    let (seed, count) = (arguments.next().unwrap_or(0), arguments.next().unwrap_or(3));
    for story in Stories::new(seed, count as usize).iter() {
        println!("{story}\n");
    }
}
