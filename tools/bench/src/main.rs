//! `d7y-bench`: the demo and the benches.

use anyhow::Result;
use d7y_bench::rig::image::{obtain, recipe};
use d7y_bench::rig::lab::Lab;
use d7y_bench::rig::places::Places;
use d7y_bench::rig::registry::Registry;

fn main() -> Result<()> {
    let lab = Lab::open(Places::find()?)?;
    let recipe =
        if std::env::args().nth(1).as_deref() == Some("learn") { recipe::LEARN } else { recipe::SERVICE };
    let images = obtain(&lab, &recipe)?;
    let registry = Registry::start(&lab)?;
    for image in &images {
        println!("{} {:?}", registry.push(&image.layout, &image.tag, "app")?, image);
    }
    Ok(())
}
