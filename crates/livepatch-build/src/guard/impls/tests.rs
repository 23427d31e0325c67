use super::*;

/// Blocks from lines such as `0 App::new::{closure#0}`: number, header and names.
fn blocks(list: &[(u32, &str, &[&str])]) -> Blocks {
    let mut blocks = Blocks::new();
    for (number, header, names) in list {
        let inside = blocks.entry(("app".to_owned(), *number)).or_default();
        if !names.is_empty() {
            let mangled = |part: &str| format!("{}{part}", part.len());
            let part =
                |part: &str| mangled(&part.replace('<', "_$LT$").replace('>', "$GT$").replace(' ', "$u20$"));
            let path: String =
                header.split("::").map(part).chain(names.iter().map(|name| part(name))).collect();
            let symbol = format!("_ZN{path}17h0123456789abcdefE");
            inside.insert(Inside { names: names.iter().map(|name| (*name).to_owned()).collect(), symbol });
        }
    }
    blocks
}

fn renumbered(old: &[(u32, &str, &[&str])], new: &[(u32, &str, &[&str])]) -> BTreeMap<String, String> {
    Renumbered::pair(&blocks(old), &blocks(new)).blocks.into_iter().collect()
}

fn expect(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(new, old): &(&str, &str)| (format!("app::{{impl#{new}}}"), format!("{{impl#{old}}}"));
    pairs.iter().map(own).collect()
}

#[test]
fn an_added_block_gets_a_number_of_its_own() {
    let old: &[(u32, &str, &[&str])] = &[(0, "app::App", &["new"]), (1, "<app::App as Run>", &["run"])];
    let new: &[(u32, &str, &[&str])] = &[
        (0, "<app::App as Clone>", &["clone"]),
        (1, "app::App", &["new"]),
        (2, "<app::App as Run>", &["run"]),
    ];
    assert_eq!(renumbered(old, new), expect(&[("0", "2"), ("1", "0"), ("2", "1")]));
    assert_eq!(renumbered(new, old), expect(&[("0", "1"), ("1", "2")]));
    assert_eq!(renumbered(old, old), expect(&[]));
}

#[test]
fn a_block_of_a_trait_is_known_without_a_method_that_both_have() {
    let old: &[(u32, &str, &[&str])] = &[(0, "<app::App as Run>", &["run"])];
    let new: &[(u32, &str, &[&str])] = &[(0, "app::App", &["new"]), (1, "<app::App as Run>", &["stop"])];
    assert_eq!(renumbered(old, new), expect(&[("0", "1"), ("1", "0")]));
}

#[test]
fn what_is_not_clear_is_left_alone() {
    let new: &[(u32, &str, &[&str])] = &[(0, "app::App", &["new"]), (1, "app::App", &["old"])];
    // Two blocks of one type, of which nothing is in both builds.
    assert_eq!(renumbered(&[(0, "app::App", &["run"]), (1, "app::App", &["new"])], new), expect(&[]));
    // Nothing is known of a block that one build has in addition to what is paired.
    assert_eq!(renumbered(&[(0, "app::None", &[]), (1, "app::App", &["new"])], new), expect(&[]));
    // One old block for two new ones, and two for one.
    let whole: &[(u32, &str, &[&str])] = &[(3, "app::App", &["new"]), (3, "app::App", &["old"])];
    assert_eq!(renumbered(whole, new), expect(&[]));
    assert_eq!(renumbered(new, whole), expect(&[]));
    // The same mark twice.
    let twice: &[(u32, &str, &[&str])] = &[(0, "app::App", &["new"]), (1, "app::App", &["new"])];
    assert_eq!(renumbered(twice, &[(1, "app::App", &["new"]), (2, "app::App", &["new"])]), expect(&[]));
}

#[test]
fn names_are_read_with_old_numbers_once() {
    let renumbered = Renumbered {
        blocks: [("app::m::{impl#1}", "{impl#0}"), ("app::m::{impl#0}", "{impl#9}")]
            .map(|(new, old)| (new.to_owned(), old.to_owned()))
            .into(),
    };
    for (new, old) in [
        ("app::m::{impl#1}::f::{closure_env#0}", "app::m::{impl#0}::f::{closure_env#0}"),
        (
            "A<app::m::{impl#1}::f::{closure_env#0}, &app::m::{impl#0}::g::T>",
            "A<app::m::{impl#0}::f::{closure_env#0}, &app::m::{impl#9}::g::T>",
        ),
        ("app::n::{impl#1}::f", "app::n::{impl#1}::f"),
        ("{impl#1}", "{impl#1}"),
        ("my::app::m::{impl#1}::f", "my::app::m::{impl#1}::f"),
    ] {
        assert_eq!(renumbered.text(new.into()), old);
        let mut segments: Vec<Cow<'_, str>> = segments(new).into_iter().map(Cow::Borrowed).collect();
        if !new.contains('<') {
            renumbered.segments(&mut segments);
            assert_eq!(segments.join("::"), old);
        }
    }
}

#[test]
fn symbols_of_both_manglings_tell_the_block() {
    let inside = |names: &[&str], symbol: &str| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        describe(&Inside { names, symbol: symbol.to_owned() }).map(|(_, mark)| mark)
    };
    let closure = "_ZN6router3app3App3new28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE";
    assert_eq!(inside(&["new", "{closure#2}"], closure).as_deref(), Some("router::app::App::new"));
    assert_eq!(inside(&["make", "{closure#2}"], closure), None);
    let method = "_ZN34_$LT$a..Sq$u20$as$u20$a..Shape$GT$4area17h06fc3cf0f7dd8079E";
    assert_eq!(inside(&["area<u8>"], method).as_deref(), Some("<a::Sq as a::Shape>"));
    let v0 = "_RNCNvMs9_NtCsgEmfK2I1SDS_4core3numj11checked_add0";
    assert_eq!(inside(&["checked_add", "{closure#0}"], v0).as_deref(), Some("<usize>::checked_add"));
}
