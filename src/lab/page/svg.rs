//! A scene as SVG: inside the page its colours are the page's, in a file its own.

use std::fmt::Write;

use super::scene::{Anchor, Ink, Item, Scene, Shape};

/// A character of HTML or SVG text or of an attribute, or what stands for it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The scene as an element of an HTML page.
pub(crate) fn element(scene: &Scene) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {:.0} {:.0}\" role=\"img\" aria-label=\"{}\">",
        scene.width,
        scene.height,
        escaped(&scene.title)
    );
    body(scene, &mut out);
    out.push_str("</svg>");
    out
}

/// The scene as a file of its own, on a light ground.
pub(crate) fn file(scene: &Scene) -> String {
    let mut out = String::new();
    let (w, h) = (scene.width, scene.height);
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w:.0}\" height=\"{h:.0}\" viewBox=\"0 0 {w:.0} {h:.0}\">"
    );
    let _ = writeln!(out, "<title>{}</title>", escaped(&scene.title));
    out.push_str("<style>text{font-family:\"DejaVu Sans\",Verdana,sans-serif}.b{font-weight:bold}.l{fill:none;stroke-linejoin:round;stroke-linecap:round}");
    let (r, g, b) = Ink::Ground.rgb();
    let _ = write!(out, ".r{{stroke:#{r:02x}{g:02x}{b:02x};stroke-width:2;paint-order:stroke}}");
    for ink in Ink::all() {
        let ((r, g, b), class) = (ink.rgb(), ink.class());
        let _ = write!(out, ".f-{class}{{fill:#{r:02x}{g:02x}{b:02x}}}.s-{class}{{stroke:#{r:02x}{g:02x}{b:02x}}}");
    }
    let _ = writeln!(out, "</style>\n<rect width=\"{w:.0}\" height=\"{h:.0}\" class=\"f-ground\"/>");
    body(scene, &mut out);
    out.push_str("</svg>\n");
    out
}

fn body(scene: &Scene, out: &mut String) {
    for item in &scene.items {
        let wrap = item.contender.is_some() || item.tip.is_some();
        if wrap {
            out.push_str("<g");
            if let Some(contender) = &item.contender {
                let _ = write!(out, " data-c=\"{}\"", escaped(contender));
            }
            out.push('>');
            if let Some(tip) = &item.tip {
                let _ = write!(out, "<title>{}</title>", escaped(tip));
            }
        }
        draw(item, out);
        out.push_str(if wrap { "</g>\n" } else { "\n" });
    }
}

fn draw(item: &Item, out: &mut String) {
    let class = item.ink.class();
    let opacity = if item.opacity < 1.0 { format!(" opacity=\"{:.2}\"", item.opacity) } else { String::new() };
    let corners =
        |points: &[(f64, f64)]| points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    let _ = match &item.shape {
        Shape::Line { points, width, dashed } => {
            let dash = if *dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            write!(
                out,
                "<polyline class=\"l s-{class}\" points=\"{}\" stroke-width=\"{width:.1}\"{dash}{opacity}/>",
                corners(points)
            )
        }
        Shape::Area { points, rim } => {
            let rim = if *rim { " r" } else { "" };
            write!(out, "<polygon class=\"f-{class}{rim}\" points=\"{}\"{opacity}/>", corners(points))
        }
        Shape::Text { at, text, size, anchor, bold } => {
            let anchor = match anchor {
                Anchor::Start => "",
                Anchor::Middle => " text-anchor=\"middle\"",
                Anchor::End => " text-anchor=\"end\"",
            };
            let bold = if *bold { " b" } else { "" };
            write!(
                out,
                "<text class=\"f-{class}{bold}\" x=\"{:.1}\" y=\"{:.1}\" font-size=\"{size:.1}\"{anchor}{opacity}>{}</text>",
                at.0,
                at.1,
                escaped(text)
            )
        }
    };
}
