package bank

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"

	"github.com/hauberk-mesh/hauberk/tests/yaobank/keystore"
)

// Account is what the summary service tells of an account.
type Account struct {
	Number  string `json:"number"`
	Name    string `json:"name"`
	Balance string `json:"balance"`
}

// problem is the body of the summary service's errors.
type problem struct {
	Error string `json:"error"`
}

// Summary serves GET /accounts/NUMBER from the database at the given URL.
func Summary(database string, log *slog.Logger) (http.Handler, error) {
	store, err := newUpstream(database)
	if err != nil {
		return nil, fmt.Errorf("configure summary: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /accounts/{number}", func(w http.ResponseWriter, r *http.Request) {
		number := r.PathValue("number")
		if !validNumber(number) {
			answer(w, http.StatusBadRequest, problem{"an account number is 1 to 12 digits"})
			return
		}
		account, err := readAccount(r, store, number)
		var refused *statusError
		switch {
		case err == nil:
			answer(w, http.StatusOK, account)
		case errors.As(err, &refused) && refused.status == http.StatusNotFound:
			answer(w, http.StatusNotFound, problem{"there is no account " + number})
		default:
			log.Warn("cannot read account", "account", number, "error", err)
			answer(w, http.StatusBadGateway, problem{"the database cannot be read: " + err.Error()})
		}
	})
	return mux, nil
}

// readAccount fetches an account's keys in one request.
func readAccount(r *http.Request, store *upstream, number string) (Account, error) {
	var event keystore.Event
	err := store.get(r.Context(), r.Header, &event, url.Values{"recursive": {"true"}}, "v2", "keys", "accounts", number)
	if err != nil {
		return Account{}, err
	}
	if event.Node == nil {
		return Account{}, errors.New("the database's answer holds no node")
	}
	account := Account{Number: number}
	for _, node := range event.Node.Nodes {
		if node == nil || node.Value == nil {
			continue
		}
		switch path.Base(node.Key) {
		case "name":
			account.Name = *node.Value
		case "balance":
			account.Balance = *node.Value
		}
	}
	if account.Name == "" || account.Balance == "" {
		return Account{}, fmt.Errorf("account %s is incomplete in the database", number)
	}
	return account, nil
}

func validNumber(number string) bool {
	if len(number) < 1 || len(number) > 12 {
		return false
	}
	for _, c := range number {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The status is sent; a client that went away is not ours to answer.
	_ = json.NewEncoder(w).Encode(body)
}
