package bank

import (
	"fmt"
	"net/http"

	"github.com/hauberk-mesh/hauberk/tests/yaobank/keystore"
)

// DefaultAccount is the account that the web page shows unless asked for another.
const DefaultAccount = "519940"

// accounts are the bank's customers on the day it opens.
var accounts = []Account{
	{Number: DefaultAccount, Name: "Robin Ashdown", Balance: "2389.45"},
	{Number: "519941", Name: "Mirela Kovač", Balance: "18200.00"},
	{Number: "519942", Name: "Tomás Oyelaran", Balance: "73.10"},
}

// Database serves a key store that holds the bank's accounts as
// /accounts/NUMBER/name and /accounts/NUMBER/balance.
func Database() (http.Handler, error) {
	store := keystore.New()
	for _, account := range accounts {
		for _, field := range []struct{ name, value string }{{"name", account.Name}, {"balance", account.Balance}} {
			key := "/accounts/" + account.Number + "/" + field.name
			if _, err := store.Set(key, field.value, false, keystore.Precondition{}); err != nil {
				return nil, fmt.Errorf("seed database key %s: %w", key, err)
			}
		}
	}
	return keystore.Handler(store), nil
}
