package bank

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
)

//go:embed customer.html
var customerPage string

// page is what the template shows: an account, or a problem in its place.
type page struct {
	Account Account
	Title   string
	Problem string
	Detail  string
}

// Customer serves the web page: / for the default account, /accounts/NUMBER
// for another, from the summary service at the given URL.
func Customer(summary string, log *slog.Logger) (http.Handler, error) {
	accounts, err := newUpstream(summary)
	if err != nil {
		return nil, fmt.Errorf("configure customer: %w", err)
	}
	view, err := template.New("customer").Parse(customerPage)
	if err != nil {
		return nil, fmt.Errorf("parse the customer page: %w", err)
	}
	show := func(w http.ResponseWriter, r *http.Request, number string) {
		status, content := look(r, accounts, number)
		if content.Problem != "" {
			log.Warn("cannot show account", "account", number, "status", status, "error", content.Detail)
		}
		var out bytes.Buffer // whole before the first byte, so that an error can still be a 500
		if err := view.Execute(&out, content); err != nil {
			log.Error("cannot render page", "error", err)
			http.Error(w, "the page cannot be rendered", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_, _ = out.WriteTo(w)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", healthz)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { show(w, r, DefaultAccount) })
	mux.HandleFunc("GET /accounts/{number}", func(w http.ResponseWriter, r *http.Request) { show(w, r, r.PathValue("number")) })
	return mux, nil
}

// look fetches an account and turns each way of failing into words for a
// customer, with the cause kept for whoever runs the demo.
func look(r *http.Request, accounts *upstream, number string) (int, page) {
	if !validNumber(number) {
		return http.StatusBadRequest, page{Title: "No such account", Problem: "That is not an account number", Detail: "An account number is 1 to 12 digits."}
	}
	var account Account
	err := accounts.get(r.Context(), r.Header, &account, nil, "accounts", number)
	var refused *statusError
	switch {
	case err == nil:
		return http.StatusOK, page{Title: "Account " + account.Number, Account: account}
	case errors.As(err, &refused) && refused.status == http.StatusNotFound:
		return http.StatusNotFound, page{Title: "No such account", Problem: "We know no account " + number, Detail: "Please check the number on your card."}
	case errors.As(err, &refused):
		return http.StatusBadGateway, page{Title: "Not available", Problem: "Your account cannot be shown right now", Detail: refused.Error()}
	default:
		return http.StatusBadGateway, page{Title: "Not available", Problem: "Your account cannot be shown right now", Detail: err.Error()}
	}
}
