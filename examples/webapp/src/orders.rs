//! `POST /order`: net, tax and total of an order.

use crate::stats;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

/// Percent.
const VAT: u64 = 19;

/// What a customer sends.
#[derive(Deserialize)]
pub struct Order {
    customer: String,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    name: String,
    cents: u64,
    quantity: u64,
}

/// What the customer gets back. All amounts in cents.
#[derive(Serialize)]
pub struct Receipt {
    customer: String,
    net: u64,
    discount: u64,
    vat: u64,
    total: u64,
}

/// The last price seen for each article.
#[derive(Clone, Default)]
pub struct Prices(Arc<RwLock<HashMap<String, u64>>>);

impl Prices {
    fn learn(&self, item: &Item) {
        let known = self.0.read().is_ok_and(|prices| prices.get(&item.name) == Some(&item.cents));
        if !known && let Ok(mut prices) = self.0.write() {
            prices.insert(item.name.clone(), item.cents);
        }
    }

    /// How many articles are known.
    pub fn len(&self) -> usize {
        self.0.read().map_or(0, |prices| prices.len())
    }
}

/// Tax on an amount in cents.
fn vat(net: u64) -> u64 {
    net * VAT / 100
}

/// Ten percent off from ten pieces on.
fn discount(net: u64, pieces: u64) -> u64 {
    if pieces >= 10 { net / 10 } else { 0 }
}

/// Handler of `POST /order`.
pub async fn create(
    State(prices): State<Prices>,
    Json(order): Json<Order>,
) -> Result<Json<Receipt>, (StatusCode, &'static str)> {
    stats::count_request();
    let mut net = 0u64;
    let mut pieces = 0u64;
    for item in &order.items {
        if item.cents > 100_000_000 || item.quantity > 10_000 {
            return Err((StatusCode::UNPROCESSABLE_ENTITY, "amount out of range"));
        }
        prices.learn(item);
        net += item.cents * item.quantity;
        pieces += item.quantity;
    }
    let discount = discount(net, pieces);
    let vat = vat(net - discount);
    Ok(Json(Receipt { customer: order.customer, net, discount, vat, total: net - discount + vat }))
}
