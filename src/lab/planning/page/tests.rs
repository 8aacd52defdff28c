use super::super::planned::tests::sample;
use super::*;

#[test]
fn the_page_needs_nothing_else_and_shows_the_plan() {
    let parts = [Part { id: "check".to_owned(), title: "Checked".to_owned(), content: html! { p { "within 3 %" } } }];
    let page = plan_page(&sample(), &parts);
    for words in [
        "2 models on 2 A100-80GB",
        "10 requests per second, mean_ttft_ms 500",
        "scores from 0.400 to 0.600",
        "equal-split",
        "No setup of isolated keeps the limits.",
        "GPU 1",
        "At 15 requests per second no routing of this setup keeps the limits",
        "<section id=\"check\"><h2>Checked</h2><p>within 3 %</p></section>",
        "2 of 9 rows, drawn with seed 0",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("http://") && !page.contains("https://"), "nothing is fetched");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("<figure").count(), 6);
}

#[test]
fn without_a_plan_the_page_says_so() {
    let none = Planned { plans: Vec::new(), by_rule: Vec::new(), at_demand: Vec::new(), ..sample() };
    let page = plan_page(&none, &[]);
    assert!(page.contains("no setup keeps the limits"));
    assert!(!page.contains("<figure"));
}

#[test]
fn names_are_words() {
    let mut planned = sample();
    planned.problem.models[0].name = "<b>".to_owned();
    planned.notes.push("1 < 2 & \"so on\"".to_owned());
    let page = plan_page(&planned, &[]);
    assert!(!page.contains("<b>\"") && page.contains("<td>&lt;b&gt;</td>"));
    assert!(page.contains("<li>1 &lt; 2 &amp; &quot;so on&quot;</li>"));
}
