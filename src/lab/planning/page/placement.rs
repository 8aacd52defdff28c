//! Which shards are on which GPU, drawn.

use crate::page::axis::number;
use crate::page::chart::{SMALL, heading};
use crate::page::scene::{Anchor, Ink, MODELS, Scene, Shape, text_width};
use crate::page::view::width;
use routebalance_plan::problem::Problem;
use routebalance_plan::solution::Plan;

const ROW: f64 = 46.0;
const BAR: f64 = 16.0;
const LEFT: f64 = 130.0;

/// A model's colour: the later in the file, the darker.
pub(super) fn ink(problem: &Problem, model: usize) -> Ink {
    Ink::Model((model * (MODELS - 1)).checked_div(problem.models.len().saturating_sub(1)).unwrap_or(MODELS / 2))
}

/// A shard in a bar.
struct Part {
    model: usize,
    name: String,
    amount: f64,
    unit: &'static str,
}

/// Two bars per GPU, caps and memory, of the shards on it.
pub(super) fn scene(problem: &Problem, plan: &Plan) -> Scene {
    let mut scene = Scene { width: width(6), title: "Which shards are on which GPU".to_owned(), ..Default::default() };
    let title = scene.title.clone();
    let subtitle = "Upper bar: caps of the shards, of the GPU's compute. Lower bar: the memory that they need at least, of the GPU's.";
    let mut y = heading(&mut scene, &title, subtitle) + 8.0;
    let full = scene.width - LEFT - 20.0;
    let gpus: Vec<usize> =
        problem.kinds.iter().enumerate().flat_map(|(k, kind)| std::iter::repeat_n(k, kind.count)).collect();
    for (gpu, kind) in gpus.into_iter().enumerate() {
        let kind = &problem.kinds[kind];
        scene.text(Ink::Text, (4.0, y + 13.0), SMALL, Anchor::Start, true, &format!("GPU {gpu}"));
        scene.text(Ink::Muted, (4.0, y + 29.0), SMALL, Anchor::Start, false, &kind.name);
        let (mut caps, mut memory) = (Vec::new(), Vec::new());
        for (m, copies) in plan.placement.gpus.iter().enumerate() {
            let choice = plan.setup.0[m];
            for _ in copies.iter().flatten().filter(|on| **on == gpu) {
                let model = &problem.models[m];
                let part = |amount: f64, unit: &'static str| Part { model: m, name: model.name.clone(), amount, unit };
                caps.push(part(f64::from(choice.share_percent), "%"));
                memory.push(part(problem.memory.shard_gb(model, choice.tensor_parallel), "GB"));
            }
        }
        // Caps that oversubscribe a GPU are drawn to their own sum.
        let sum: f64 = caps.iter().map(|part| part.amount).sum();
        bar(&mut scene, problem, y, full / sum.max(100.0), 100.0, &caps);
        bar(&mut scene, problem, y + BAR + 3.0, full / kind.memory_gb, kind.memory_gb, &memory);
        y += ROW;
    }
    scene.height = y + 4.0;
    scene
}

fn bar(scene: &mut Scene, problem: &Problem, y: f64, scale: f64, whole: f64, parts: &[Part]) {
    let area = |from: f64, to: f64| {
        let (left, right) = (LEFT + from * scale, LEFT + to * scale);
        Shape::Area { points: vec![(left, y), (right, y), (right, y + BAR), (left, y + BAR)], rim: true }
    };
    scene.add(Ink::Grid, area(0.0, whole));
    let mut from = 0.0;
    for part in parts {
        let words = format!("{} {}", number(part.amount, 3), part.unit);
        let tip = format!("{}: {words}", part.name);
        let ink = ink(problem, part.model);
        scene.add(ink, area(from, from + part.amount)).says(&tip);
        // Dark colours need light words; where there is no room for the name, the amount stands alone.
        let light = matches!(ink, Ink::Model(step) if step >= MODELS / 2);
        let room = part.amount * scale - 8.0;
        let text = [tip.as_str(), words.as_str()].into_iter().find(|text| text_width(text, SMALL, false) <= room);
        if let Some(text) = text {
            let at = (LEFT + from * scale + 5.0, y + BAR - 4.0);
            scene.text(
                if light { Ink::Model(0) } else { Ink::Model(MODELS - 1) },
                at,
                SMALL,
                Anchor::Start,
                false,
                text,
            );
        }
        from += part.amount;
    }
}
