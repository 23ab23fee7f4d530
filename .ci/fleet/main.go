// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

// Fleet has callers in several processes ask for one key, with a Group in each process
// and a lease in Redis between them, and checks how often the backend is asked.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"example.com/singleflight"
)

const (
	processes = 4
	callers   = 250 // in each

	term     = 2 * time.Second       // of a lease; its holder extends it every quarter of that
	interval = 50 * time.Millisecond // between two looks while another process holds the lease
	patience = 20 * time.Second      // of fn, with Redis and the backend together
	kept     = time.Minute           // the expiry of a value
)

// load returns the value in Redis or, with a lease, the backend's. It tries the lease
// once after each look. redsync's own retries do not see that the value has come or that
// Redis has failed, and they end after so many tries, however long the holder works.
//
// The lease saves calls. It is no lock: a holder that loses it goes on, so two may ask
// the backend at a time, and the older value may replace the newer until it expires.
//
// If Redis fails, load asks the backend without a lease. To return the error would spare
// the backend. But Redis is here to save work, so its failure should not stop the work,
// and the Group still keeps that to one call a process at a time.
func load(ctx context.Context, rdb *redis.Client, leases *redsync.Redsync, key string, ask func(context.Context) (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lease := leases.NewMutex("lease:"+key, redsync.WithExpiry(term), redsync.WithTimeoutFactor(0.5))
	for held := false; ; {
		v, err := rdb.Get(ctx, key).Result()
		switch {
		case err == nil:
			return v, nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		case !errors.Is(err, redis.Nil):
			log.Printf("asks without a lease: %v", err)
			return ask(ctx)
		case held: // since before this look
			v, err := ask(ctx)
			if err == nil {
				if err := rdb.Set(ctx, key, v, kept).Err(); err != nil {
					log.Printf("cannot store its value: %v", err)
				}
			}
			return v, err
		}
		if held = lease.TryLockContext(ctx) == nil; held {
			defer lease.Unlock() // if that fails, it runs out
			go func() {
				for ctx.Err() == nil {
					lease.ExtendContext(ctx)
					time.Sleep(term / 4)
				}
			}()
		} else {
			time.Sleep(interval)
		}
	}
}

type process struct {
	*exec.Cmd
	lines *bufio.Scanner
}

type request struct { // waits at the backend for its answer
	from   int // the process
	answer chan<- string
}

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 {
		member(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
		return
	}
	// The kernel kills a child when the thread that started it ends. Here that is the
	// main thread, so no child outlives this process, however that ends.
	runtime.LockOSThread()
	time.AfterFunc(time.Minute, func() { log.Fatal("FAILED: not done after a minute") })

	var asked atomic.Int64 // in this round
	requests := make(chan request, processes*callers)
	web := must(net.Listen("tcp", "127.0.0.1:0"))
	go http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer := make(chan string)
		requests <- request{int(r.URL.Path[1] - '0'), answer}
		io.WriteString(w, <-answer)
	}))

	folder := must(os.MkdirTemp("", "fleet"))
	defer os.RemoveAll(folder)
	socket := filepath.Join(folder, "redis")
	server := start("redis-server", "--port", "0", "--unixsocket", socket, "--dir", folder, "--save", "", "--loglevel", "warning")
	ctx, rdb := context.Background(), connect(socket, 50)
	must(rdb.Ping(ctx).Result())

	// round starts the processes, and returns when all their callers wait.
	round := func(key string) (all []*process) {
		for n := range processes {
			all = append(all, start(os.Args[0], fmt.Sprint(n), key, socket, "http://"+web.Addr().String()))
		}
		for _, p := range all {
			p.says(fmt.Sprint(callers, " wait"))
		}
		return all
	}
	end := func(want int64, format string, args ...any) {
		n := asked.Swap(0)
		fmt.Printf("asked %d×: %s\n", n, fmt.Sprintf(format, args...))
		check(n == want, "the backend should have been asked %d×", want)
	}
	fmt.Printf("%d processes, %d callers in each, one key, leases of %v\n", processes, callers, term)

	all, first := round("well"), <-requests
	time.Sleep(term * 3 / 2) // so the lease must be extended
	check(len(requests) == 0, "the backend is asked again before it has answered")
	first.answer <- "one"
	answered("one", all...)
	expiry := rdb.PTTL(ctx, "well").Val()
	check(expiry > 0 && expiry <= kept, "the value expires after %v", expiry)
	end(1, "the backend takes longer than a lease")

	all, first = round("killed"), <-requests
	all[first.from].Process.Kill()
	all[first.from].Wait()
	killed, left := time.Now(), rdb.PTTL(ctx, "lease:killed").Val()
	second := <-requests
	after := time.Since(killed)
	check(left > 0 && after >= left, "asked again after %v, when the lease had %v left", after, left)
	second.answer <- "two"
	answered("two", slices.Delete(all, first.from, first.from+1)...)
	end(2, "the holder is killed; %v later, when its lease has run out, another asks", after)

	for _, how := range []string{"Redis is killed while all wait", "Redis is down"} {
		all = round("down")
		server.Process.Kill()
		server.Wait()
		for range all {
			r := <-requests
			r.answer <- "a value"
			answered("a value", all[r.from])
		}
		end(processes, "%s; each process asks without a lease", how)
	}
}

func connect(socket string, retries int) *redis.Client {
	logging.Disable() // of errors that load logs
	return redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: retries, DialerRetries: 1})
}

func start(name string, args ...string) *process {
	c := exec.Command(name, args...)
	c.Stderr, c.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{c, bufio.NewScanner(must(c.StdoutPipe()))}
	return must(p, p.Start())
}

func (p *process) says(want string) {
	p.lines.Scan()
	check(p.lines.Text() == want, "a process says %q, not %q", p.lines.Text(), want)
}

func answered(v string, all ...*process) {
	for _, p := range all {
		p.says(fmt.Sprint(map[string]int{v: callers}))
		must(p, p.Wait())
	}
}

func must[V any](v V, err error) V {
	check(err == nil, "%v", err)
	return v
}

func check(ok bool, format string, args ...any) {
	if !ok {
		log.Fatalf("FAILED: "+format, args...)
	}
}

// member is one of the processes. It says when all its callers wait, and how often they
// get which answer.
func member(number, key, socket, backend string) {
	log.SetPrefix("process " + number + " ")
	rdb := connect(socket, 1)
	leases := redsync.New(goredis.NewPool(rdb))
	ask := func(ctx context.Context) (string, error) {
		r, err := http.DefaultClient.Do(must(http.NewRequestWithContext(ctx, "GET", backend+"/"+number, nil)))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		return string(must(io.ReadAll(r.Body))), nil
	}
	var flights singleflight.GroupOf[string]
	answers := make(chan string, callers)
	for range callers {
		go func() {
			answers <- must(flights.DoContext(context.Background(), key, func(ctx context.Context) (string, error) {
				return load(ctx, rdb, leases, key, ask)
			}))
		}()
	}
	// Those who have joined stand in a select.
	joined := regexp.MustCompile(`\[select[^]]*\]:\nexample\.com/singleflight\.\(\*call\)\.wait\(`)
	stacks, n := make([]byte, 8<<20), 0
	for n < callers && len(answers) == 0 {
		time.Sleep(time.Millisecond)
		n = len(joined.FindAll(stacks[:runtime.Stack(stacks, true)], -1))
	}
	fmt.Println(n, "wait")
	got := make(map[string]int)
	for range callers {
		got[<-answers]++
	}
	fmt.Println(got)
}
