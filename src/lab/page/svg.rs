//! A scene as SVG: inside the page its colours are the page's, in a file its own.

use std::fmt::Write;

use maud::{Markup, PreEscaped, Render, html};

use super::scene::{Anchor, Ink, Item, Scene, Shape};

/// The scene as an element of an HTML page.
pub(crate) fn element(scene: &Scene) -> Markup {
    let view_box = format!("0 0 {:.0} {:.0}", scene.width, scene.height);
    html! { svg viewBox=(view_box) role="img" aria-label=(scene.title) { (items(scene)) } }
}

/// The scene as a file of its own, on a light ground.
pub(crate) fn file(scene: &Scene) -> String {
    let [w, h] = [scene.width, scene.height].map(|length| format!("{length:.0}"));
    let element = html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(w) height=(h) viewBox={ "0 0 " (w) " " (h) } {
            title { (scene.title) }
            style { (PreEscaped(style())) }
            rect width=(w) height=(h) class="f-ground" {}
            "\n"
            (items(scene))
        }
        "\n"
    };
    element.into_string()
}

fn style() -> String {
    let mut css = "text{font-family:\"DejaVu Sans\",Verdana,sans-serif}.b{font-weight:bold}\
                   .l{fill:none;stroke-linejoin:round;stroke-linecap:round}"
        .to_owned();
    let (r, g, b) = Ink::Ground.rgb();
    let _ = write!(css, ".r{{stroke:#{r:02x}{g:02x}{b:02x};stroke-width:2;paint-order:stroke}}");
    for ink in Ink::all() {
        let ((r, g, b), class) = (ink.rgb(), ink.class());
        let _ = write!(css, ".f-{class}{{fill:#{r:02x}{g:02x}{b:02x}}}.s-{class}{{stroke:#{r:02x}{g:02x}{b:02x}}}");
    }
    css
}

fn items(scene: &Scene) -> Markup {
    html! {
        @for item in &scene.items {
            @if item.contender.is_some() || item.tip.is_some() {
                g data-c=[item.contender.as_deref()] {
                    @if let Some(tip) = &item.tip {
                        title { (tip) }
                    }
                    (drawn(item))
                }
            } @else {
                (drawn(item))
            }
            "\n"
        }
    }
}

/// A number with so many digits after the point.
struct Digits(f64, usize);

impl Render for Digits {
    fn render_to(&self, out: &mut String) {
        let _ = write!(out, "{:.*}", self.1, self.0);
    }
}

fn drawn(item: &Item) -> Markup {
    let class = item.ink.class();
    let opacity = (item.opacity < 1.0).then_some(Digits(item.opacity, 2));
    let corners =
        |points: &[(f64, f64)]| points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    match &item.shape {
        Shape::Line { points, width, dashed } => {
            let dashes = dashed.then_some("6 4");
            html! {
                polyline class={ "l s-" (class) } points=(corners(points)) stroke-width=(Digits(*width, 1))
                    stroke-dasharray=[dashes] opacity=[opacity] {}
            }
        }
        Shape::Area { points, rim } => {
            let rim = if *rim { " r" } else { "" };
            html! { polygon class={ "f-" (class) (rim) } points=(corners(points)) opacity=[opacity] {} }
        }
        Shape::Text { at, text, size, anchor, bold } => {
            let anchor = match anchor {
                Anchor::Start => None,
                Anchor::Middle => Some("middle"),
                Anchor::End => Some("end"),
            };
            let bold = if *bold { " b" } else { "" };
            html! {
                text class={ "f-" (class) (bold) } x=(Digits(at.0, 1)) y=(Digits(at.1, 1)) font-size=(Digits(*size, 1))
                    text-anchor=[anchor] opacity=[opacity] { (text) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_data_are_no_elements() {
        let mut scene = Scene { title: "a \"title\" < &".to_owned(), ..Scene::default() };
        scene.text(Ink::Text, (1.0, 2.0), 10.0, Anchor::End, true, "<b>x</b>").of_contender("<i>\"").says("1 < 2");
        let expected = "<g data-c=\"&lt;i&gt;&quot;\"><title>1 &lt; 2</title><text class=\"f-text b\" x=\"1.0\" y=\"2.0\" \
                        font-size=\"10.0\" text-anchor=\"end\">&lt;b&gt;x&lt;/b&gt;</text></g>";
        for svg in [element(&scene).into_string(), file(&scene)] {
            assert!(svg.contains(expected) && svg.contains("a &quot;title&quot; &lt; &amp;"), "{svg}");
        }
    }
}
