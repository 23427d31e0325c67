//! Closures and async blocks, in the order in which the compiler counts them.
//!
//! The name of one is a number among those of what it stands in. The compiler counts when code comes to be: first what stands in the
//! text itself, in its order, then what macros expand to, of which nothing is told here. An attribute that generates code may put
//! anything in front, and conditional compilation may take anything away; then nothing is told of the whole function.

use super::pieces::text;
use super::tokens::{Context, Token, flatten};
use quote::ToTokens;
use syn::visit::{self, Visit};

/// What is counted in one body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Those of the text itself, in the order of their numbers.
    pub all: Vec<Anonymous>,
    /// Macro calls that may have further ones in their arguments.
    pub macros: String,
}

/// A closure or async block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    /// What stands in front of its body.
    pub header: String,
    /// All of it.
    pub text: String,
    /// Those that stand in it.
    pub inner: Counted,
}

impl Counted {
    /// The body of an `async fn`, which is one itself.
    pub(super) fn body(&mut self, block: &syn::Block) {
        self.enter("async fn".into(), spelled(block), |inner| visit::visit_block(inner, block));
    }

    fn enter(&mut self, header: String, text: String, walk: impl FnOnce(&mut Counted)) {
        let mut inner = Self::default();
        walk(&mut inner);
        self.all.push(Anonymous { header, text, inner });
    }
}

impl<'ast> Visit<'ast> for Counted {
    fn visit_expr_closure(&mut self, closure: &'ast syn::ExprClosure) {
        let mut head = closure.clone();
        *head.body = syn::Expr::Verbatim(proc_macro2::TokenStream::new());
        let (header, text) = (spelled(&head), spelled(closure));
        self.enter(header, text, |inner| {
            closure.inputs.iter().for_each(|input| inner.visit_pat(input));
            match closure.asyncness {
                // Its body is one more.
                Some(_) => {
                    let text = spelled(&closure.body);
                    inner.enter("async".into(), text, |body| body.visit_expr(&closure.body));
                }
                None => inner.visit_expr(&closure.body),
            }
        });
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        let mut head = block.clone();
        head.block.stmts.clear();
        self.enter(spelled(&head), spelled(block), |inner| visit::visit_block(inner, &block.block));
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let tokens = flatten(call.to_token_stream());
        if tokens.iter().any(|token| token.is_punct("|") || token.name() == "async") {
            self.macros.push_str(&text(&tokens));
        }
    }

    // What is in these has a number among what is in these.
    fn visit_item(&mut self, _: &'ast syn::Item) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
    fn visit_type_array(&mut self, _: &'ast syn::TypeArray) {}
}

/// Whether conditional compilation may take part of a body away.
pub(super) fn is_conditional(body: &[Token]) -> bool {
    let conditional = ["cfg", "cfg_attr"];
    body.iter().any(|token| token.context == Context::Attribute && conditional.contains(&token.name()))
}

/// The text, in which words stay apart.
fn spelled(node: &impl ToTokens) -> String {
    text(&flatten(node.to_token_stream()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(text: &str) -> Counted {
        let mut counted = Counted::default();
        counted.visit_block(&syn::parse_str(text).expect("a block"));
        counted
    }

    fn outline(counted: &Counted) -> String {
        let each = counted.all.iter().map(|one| format!("{} [{}]", one.header, outline(&one.inner)));
        each.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn they_are_counted_as_the_compiler_does() {
        // Numbers that rustc 1.95 gives (v0 names of such a function): what macros hold comes behind all others.
        let text = "{ let a = own!(|x| x); let b = f(|x| { g(move |y: u64| y); x }); let c = [0; 3].map(|z| z); async move { h(|| 1) } }";
        assert_eq!(outline(&counted(text)), "| x | [move | y : u64 | []], | z | [], async move { } [| | []]");
        assert_eq!(counted(text).macros, "own ! ( | x | x )");
        let text = "{ let f = async |x: u64| { g(|y| y) }; fn inner() { h(|z| z) } }";
        assert_eq!(outline(&counted(text)), "async | x : u64 | [async [| y | []]]");
    }

    #[test]
    fn what_may_be_compiled_away() {
        let conditional = |text: &str| is_conditional(&flatten(text.parse().unwrap()));
        assert!(conditional("{ #[cfg(test)] let f = |x| x; }"));
        assert!(!conditional("{ #[allow(unused)] let f = |x| x; }"));
    }
}
