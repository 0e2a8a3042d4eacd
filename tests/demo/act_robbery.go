package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/hauberk-mesh/hauberk/tests/stage"
)

var actRobbery = Act{
	Name:  "robbery",
	Title: "before the mesh: whoever is in the web page's pod reads the whole database",
	Why: "The bank is customer (web page) → summary → database. Nothing keeps the customer pod from asking the database itself,\n" +
		"  so an attacker who gets into the web page has every account; and what they say goes over the wire in clear.",
	Play: func(ctx context.Context, s *stage.Stage, r *Report) {
		look := visitor.get(page)
		r.Step(ctx, Step{Type: look, Expect: "a visitor sees the web page", See: func(ctx context.Context) (string, error) { return shows(ctx, s, look) }})
		rob := customer.get(allKeys)
		r.Step(ctx, Step{Type: rob, Expect: "the compromise: 200 and the accounts of all customers", See: func(ctx context.Context) (string, error) {
			return tells(ctx, s, rob, owner, neighbor)
		}})
		wire(ctx, s, r, "the question and the answer in clear", func(said []byte) (string, error) {
			if !bytes.Contains(said, []byte("GET /v2/keys")) || !bytes.Contains(said, []byte(owner)) {
				return "", errDiffers("no GET /v2/keys or no %s in %d bytes", owner, len(said))
			}
			return fmt.Sprintf("“GET /v2/keys” and “%s” in clear, in %d bytes", owner, len(said)), nil
		})
	},
}

// wire looks at what the database's node sees of a request for all keys, and of
// the web page, on port 2379.
func wire(ctx context.Context, s *stage.Stage, r *Report, expect string, judge func(said []byte) (string, error)) bool {
	databases, err := pods(ctx, s, "database")
	if err != nil {
		r.Skip(err.Error())
		return false
	}
	device, err := link(ctx, s, databases[0])
	if err != nil {
		r.Skip(err.Error())
		return false
	}
	const filter = "tcp port 2379"
	return r.Step(ctx, Step{
		Type:   stage.CaptureCommand(databases[0].node, device, filter) + "    # and meanwhile the same request",
		Expect: expect,
		See: func(ctx context.Context) (string, error) {
			seen, err := s.Capture(ctx, databases[0].node, device, filter, func(ctx context.Context) error {
				if said, err := tells(ctx, s, customer.get(allKeys), owner); err != nil {
					return fmt.Errorf("the request: %s: %w", said, err)
				}
				_, err := shows(ctx, s, visitor.get(page))
				return err
			})
			if err != nil {
				return "", err
			}
			var said []byte
			for _, p := range seen {
				said = append(said, p.Payload...)
			}
			if len(said) == 0 {
				return "", errNone
			}
			return judge(said)
		},
		Look: []string{"kubectl -n yaobank get pods -o wide", "cluster exec-node " + databases[0].node + " -- ip -br link"},
	})
}
