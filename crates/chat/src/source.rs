//! What happens to the source of a template before it is compiled, and what it uses.

use minijinja::machinery::ast::{BinOpKind, CallArg, CallType, Expr, Stmt};
use minijinja::machinery::{Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use crate::methods;

/// The function that replaces the operator `%`, which formats strings in Python.
pub(crate) const REMAINDER: &str = "__remainder__";

/// The filter that marks the text of `{% generation %}` blocks.
pub(crate) const GENERATION: &str = "__generation__";

/// Maximum number of tokens of one tag.
const MAX_TAG_TOKENS: usize = 2000;
/// Maximum number of `elif` in a template.
const MAX_ALTERNATIVES: usize = 500;

/// Names that a template uses.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    pub(crate) filters: Vec<String>,
    pub(crate) tests: Vec<String>,
    pub(crate) functions: Vec<String>,
    /// Methods that no value has here.
    pub(crate) unknown_methods: Vec<String>,
    /// Whether it has `{% generation %}` blocks.
    pub(crate) has_generation: bool,
}

/// Prepares a source for minijinja: line ends become `\n`, as in Jinja; `{% generation %}`, which marks
/// training targets, becomes a plain block, or one whose text goes through the filter [`GENERATION`] with `marks`;
/// and `%` a function. Also returns what the template uses.
pub(crate) fn prepare(
    source: &str,
    syntax: &SyntaxConfig,
    marks: bool,
) -> Result<(String, Uses), Error> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (source, has_generation) = replace_generation_tags(&source, marks);
    check_depth(&source, syntax)?;
    let mut uses = Uses {
        has_generation,
        ..Uses::default()
    };
    let edits = {
        let tree = parse(&source, "chat", syntax.clone())?;
        let mut remainders = Vec::new();
        visit(&tree, &mut uses, &mut remainders);
        remainder_edits(&source, &remainders, syntax)?
    };
    Ok((apply(&source, edits), uses))
}

/// Rejects templates that are nested too deeply for the stack: the compiler is recursive, and its own limit does
/// not count chains of operators or of `elif`.
fn check_depth(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut tokens, mut alternatives) = (0_usize, 0_usize);
    for token in tokenize(source, false, syntax.clone()) {
        match token?.0 {
            Token::BlockStart | Token::VariableStart => tokens = 0,
            Token::Ident("elif") => alternatives += 1,
            _ => tokens += 1,
        }
        if tokens > MAX_TAG_TOKENS || alternatives > MAX_ALTERNATIVES {
            let problem = format!(
                "a tag of the template has more than {MAX_TAG_TOKENS} parts, or there are more than \
                 {MAX_ALTERNATIVES} `elif`"
            );
            return Err(Error::new(ErrorKind::SyntaxError, problem));
        }
    }
    Ok(())
}

/// Replaces the tags `generation` and `endgeneration` outside strings, comments and raw blocks. The block has
/// a scope of its own, like the call block that transformers makes of it. Also returns whether there are any.
fn replace_generation_tags(source: &str, marks: bool) -> (String, bool) {
    let (block_begin, block_end) = if marks {
        let begin = format!("with %}}{{% filter {GENERATION}");
        (begin, "endfilter %}{% endwith")
    } else {
        ("with".to_owned(), "endwith")
    };
    let mut has_generation = false;
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_raw = false;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        // A tag that is not closed is an error of syntax: what follows it does not matter.
        let end = match tag.as_bytes().get(1) {
            Some(b'#') if !is_raw => tag.find("#}").map(|end| end + 2),
            Some(b'{') if !is_raw => tag_end(tag, "}}"),
            Some(b'%') if !is_raw => tag_end(tag, "%}"),
            Some(b'%') => end_of_raw(tag).or(Some(2)),
            _ => Some(1),
        };
        let Some(end) = end else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        let word = tag
            .strip_prefix("{%")
            .and_then(|tag| tag.strip_suffix("%}"));
        let word =
            word.map(|word| word.trim_matches(|c: char| c.is_whitespace() || "+-".contains(c)));
        match word {
            Some("endraw") => is_raw = false,
            Some("raw") => is_raw = true,
            _ => {}
        }
        match word {
            Some("generation") if !is_raw => {
                has_generation = true;
                out.push_str(&tag.replace("generation", &block_begin));
            }
            Some("endgeneration") if !is_raw => {
                out.push_str(&tag.replace("endgeneration", block_end));
            }
            _ => out.push_str(tag),
        }
        rest = after;
    }
    (out + rest, has_generation)
}

/// The length of the tag `endraw` at the start of `text`, if it is one.
fn end_of_raw(text: &str) -> Option<usize> {
    let word = without_sign(text.strip_prefix("{%")?).trim_ascii_start();
    let end = word.strip_prefix("endraw")?.trim_ascii_start();
    let rest = without_sign(end).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

/// The text after a sign that says what happens to white space beside a tag.
fn without_sign(text: &str) -> &str {
    text.strip_prefix(['+', '-']).unwrap_or(text)
}

/// The length of the tag at the start of `text`, up to and including `close` outside strings and brackets.
fn tag_end(text: &str, close: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut at = 2;
    let mut depth = 0_usize;
    while at < bytes.len() {
        if depth == 0 && bytes[at..].starts_with(close.as_bytes()) {
            return Some(at + close.len());
        }
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// A node of the tree.
enum Node<'t, 's> {
    Stmt(&'t Stmt<'s>),
    Expr(&'t Expr<'s>),
}

/// Collects the names that a template uses, and the byte ranges of all operations with `%`. Not recursive:
/// a chain of operators can be as deep as the file is long.
fn visit(tree: &Stmt<'_>, uses: &mut Uses, remainders: &mut Vec<(usize, usize)>) {
    let mut pending = vec![Node::Stmt(tree)];
    while let Some(node) = pending.pop() {
        match node {
            Node::Stmt(stmt) => visit_statement(stmt, &mut pending),
            Node::Expr(expr) => visit_expression(expr, uses, remainders, &mut pending),
        }
    }
}

fn visit_statement<'t, 's>(stmt: &'t Stmt<'s>, pending: &mut Vec<Node<'t, 's>>) {
    let (mut expressions, mut bodies): (Vec<&Expr<'s>>, Vec<&[Stmt<'s>]>) =
        (Vec::new(), Vec::new());
    match stmt {
        Stmt::Template(node) => bodies.push(&node.children),
        Stmt::EmitExpr(node) => expressions.push(&node.expr),
        Stmt::ForLoop(node) => {
            expressions.push(&node.iter);
            expressions.extend(&node.filter_expr);
            bodies.extend([&node.body[..], &node.else_body[..]]);
        }
        Stmt::IfCond(node) => {
            expressions.push(&node.expr);
            bodies.extend([&node.true_body[..], &node.false_body[..]]);
        }
        Stmt::WithBlock(node) => {
            expressions.extend(node.assignments.iter().map(|(_, value)| value));
            bodies.push(&node.body);
        }
        Stmt::Set(node) => expressions.push(&node.expr),
        Stmt::SetBlock(node) => {
            expressions.extend(&node.filter);
            bodies.push(&node.body);
        }
        Stmt::AutoEscape(node) => {
            expressions.push(&node.enabled);
            bodies.push(&node.body);
        }
        Stmt::FilterBlock(node) => {
            expressions.push(&node.filter);
            bodies.push(&node.body);
        }
        Stmt::Macro(node) => {
            expressions.extend(&node.defaults);
            bodies.push(&node.body);
        }
        Stmt::CallBlock(node) => {
            expressions.push(&node.call.expr);
            expressions.extend(node.call.args.iter().map(argument));
            expressions.extend(&node.macro_decl.defaults);
            bodies.push(&node.macro_decl.body);
        }
        Stmt::Do(node) => {
            expressions.push(&node.call.expr);
            expressions.extend(node.call.args.iter().map(argument));
        }
        // The others have no expressions, or are not in this build of minijinja.
        _ => {}
    }
    pending.extend(expressions.into_iter().map(Node::Expr));
    pending.extend(bodies.into_iter().flatten().map(Node::Stmt));
}

fn argument<'t, 's>(arg: &'t CallArg<'s>) -> &'t Expr<'s> {
    match arg {
        CallArg::Pos(expr)
        | CallArg::Kwarg(_, expr)
        | CallArg::PosSplat(expr)
        | CallArg::KwargSplat(expr) => expr,
    }
}

fn visit_expression<'t, 's>(
    expr: &'t Expr<'s>,
    uses: &mut Uses,
    remainders: &mut Vec<(usize, usize)>,
    pending: &mut Vec<Node<'t, 's>>,
) {
    let mut children: Vec<&Expr<'s>> = Vec::new();
    match expr {
        Expr::Var(_) | Expr::Const(_) => {}
        Expr::Slice(node) => {
            children.push(&node.expr);
            children.extend(node.start.iter().chain(&node.stop).chain(&node.step));
        }
        Expr::UnaryOp(node) => children.push(&node.expr),
        Expr::BinOp(node) => {
            if matches!(node.op, BinOpKind::Rem) {
                let span = node.span();
                remainders.push((span.start_offset as usize, span.end_offset as usize));
            }
            children.extend([&node.left, &node.right]);
        }
        Expr::Compare(node) => {
            children.push(&node.expr);
            children.extend(node.ops.iter().map(|op| &op.expr));
        }
        Expr::IfExpr(node) => {
            children.extend([&node.test_expr, &node.true_expr]);
            children.extend(&node.false_expr);
        }
        Expr::Filter(node) => {
            uses.filters.push(node.name.to_owned());
            children.extend(&node.expr);
            children.extend(node.args.iter().map(argument));
        }
        Expr::Test(node) => {
            uses.tests.push(node.name.to_owned());
            children.push(&node.expr);
            children.extend(node.args.iter().map(argument));
        }
        Expr::GetAttr(node) => children.push(&node.expr),
        Expr::GetItem(node) => children.extend([&node.expr, &node.subscript_expr]),
        Expr::Call(node) => {
            match node.identify_call() {
                CallType::Function(name) => uses.functions.push(name.to_owned()),
                CallType::Method(_, name) if !methods::is_known(name) => {
                    uses.unknown_methods.push(name.to_owned());
                }
                _ => {}
            }
            children.push(&node.expr);
            children.extend(node.args.iter().map(argument));
        }
        Expr::List(node) => children.extend(&node.items),
        Expr::Tuple(node) => children.extend(&node.items),
        Expr::Map(node) => children.extend(node.keys.iter().chain(&node.values)),
    }
    pending.extend(children.into_iter().map(Node::Expr));
}

/// A replacement of the bytes `start..start + len`.
struct Edit {
    start: usize,
    len: usize,
    text: &'static str,
}

/// Turns each `LEFT % RIGHT` at one of `ranges` into a call. The operator is the last `%` of its range outside
/// brackets, since operators of the same rank group to the left.
fn remainder_edits(
    source: &str,
    ranges: &[(usize, usize)],
    syntax: &SyntaxConfig,
) -> Result<Vec<Edit>, Error> {
    if ranges.is_empty() {
        return Ok(Vec::new());
    }
    // Operators with the number of open brackets before them. A bracket has two positions.
    let mut tokens = Vec::new();
    let mut depth = 0_i64;
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token?;
        match token {
            Token::Mod => tokens.push((span.start_offset as usize, depth, true)),
            Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => {
                tokens.push((span.start_offset as usize, depth, false));
                depth += 1;
            }
            Token::ParenClose | Token::BracketClose | Token::BraceClose => depth -= 1,
            Token::BlockStart | Token::VariableStart => depth = 0,
            _ => {}
        }
    }
    let mut edits = Vec::new();
    for (start, end) in ranges {
        let first = tokens.partition_point(|(at, _, _)| at < start);
        let inside = &tokens[first..tokens.partition_point(|(at, _, _)| at < end)];
        // All brackets that are open at the start of the range stay open within it.
        let outer = inside.iter().map(|(_, depth, _)| *depth).min();
        let operator = inside
            .iter()
            .rev()
            .find(|(_, depth, is_operator)| *is_operator && Some(*depth) == outer);
        let Some((operator, _, _)) = operator else {
            let problem = "cannot find the operator `%` of an expression";
            return Err(Error::new(ErrorKind::SyntaxError, problem));
        };
        edits.extend([
            Edit {
                start: *start,
                len: 0,
                text: "__remainder__(",
            },
            Edit {
                start: *operator,
                len: 1,
                text: ",",
            },
            Edit {
                start: *end,
                len: 0,
                text: ")",
            },
        ]);
    }
    // The end of an operation comes before the operator of the next one.
    edits.sort_by_key(|edit| (edit.start, edit.len));
    Ok(edits)
}

fn apply(source: &str, edits: Vec<Edit>) -> String {
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for edit in edits {
        out.push_str(&source[done..edit.start]);
        out.push_str(edit.text);
        done = edit.start + edit.len;
    }
    out + &source[done..]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
