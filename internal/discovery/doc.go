// Package discovery is the client end of the config stream: it subscribes,
// acknowledges, reconnects and resynchronises, and hands what changed to one
// handler. Sidecars and node agents use it alike.
//
// It does not know what the resources mean (the handler does), and does not
// serve the stream (control/distribute does).
package discovery
